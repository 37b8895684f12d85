"""Queries answered from a passage store, beside a small cross-encoder that reads the same passages.

    pip install onnx onnxruntime
    python -m benchmarks.stored [--passages 100] [--corpus 400] [--queries 20] [--device cuda --dtype bfloat16]

A corpus is encoded into a store on disk. A new process then ranks lists drawn from it with nothing in memory, so that
every passage of every query comes from the store; the first query is left out, which opens the file. Each query is
split into the store (reading and unpacking), the pass (the query's tokens through the model, and the heads' reading of
the passages) and the rest (tokens, scores). The cross-encoder has 6 layers, 384 wide, random weights, and scores as
many pairs of like length, in torch and by ONNX Runtime in int8, in turn with the queries. `--memory` lets the
retriever keep passages, as in a process that ranks them again.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cross_encoder import CrossEncoder
from benchmarks.warm import passages
from qrhead_rag import QRRetriever
from qrhead_rag.core.attention import HeadReader
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.stored import StoredPassages

QUERY = "Who keeps the key of store {number} and when is it open?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100, help="of a list")
    parser.add_argument("--words", type=int, default=70, help="of a passage: 70 are about 90 tokens")
    parser.add_argument("--corpus", type=int, default=400)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--key-dtype", default="float16")
    parser.add_argument("--memory", action="store_true", help="passages stay in memory between queries")
    parser.add_argument("--skip-onnx", action="store_true")
    parser.add_argument("--store", type=Path, help="(of the second process)")
    options = parser.parse_args()
    if options.store is None:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "chunks.db"
            retriever = loaded(options, store)
            seconds = timed(lambda: retriever.encode_to_store(passages(options.corpus, options.words)))[0]
            size = store.stat().st_size / options.corpus
            print(f"{options.corpus} passages encoded in {seconds:.1f} s, {size / 1000:.1f} kB each", flush=True)
            del retriever
            subprocess.run([sys.executable, "-m", "benchmarks.stored", *sys.argv[1:], "--store", store], check=True)
        return
    compare(options)


def loaded(options: argparse.Namespace, store: Path) -> QRRetriever:
    memory = {} if options.memory else {"cache_bytes": 0}
    return QRRetriever.from_pretrained(
        mode="late", store=store, device=options.device, dtype=options.dtype, key_dtype=options.key_dtype, **memory
    )


def compare(options: argparse.Namespace) -> None:
    retriever, corpus, draw = loaded(options, options.store), passages(options.corpus, options.words), random.Random(0)
    tokens = statistics.mean(retriever.count_tokens(text) for text in corpus)
    encoder = CrossEncoder(pairs=options.passages, query_tokens=14, passage_tokens=round(tokens))
    if options.device != "cpu":
        encoder.model.to(options.device, retriever.model.dtype)
        encoder.batches = [{name: ids.to(options.device) for name, ids in batch.items()} for batch in encoder.batches]
    int8 = None if options.skip_onnx or options.device != "cpu" else encoder.seconds_onnx_int8
    parts = {"store": Timer(StoredPassages, "read"), "pass": Timer(HeadReader, "read")}
    queries: dict[str, list[float]] = {"query": [], "store": [], "pass": [], "rest": []}
    others: dict[str, list[float]] = {"torch": [], "int8": []}
    print(
        f"lists of {options.passages} passages of {tokens:.0f} tokens, {torch.get_num_threads()} threads, "
        f"{retriever.model.dtype}, keys in {options.key_dtype}, "
        f"{'kept in memory' if options.memory else 'from the store'}"
    )
    for number in range(options.queries + 1):
        texts = draw.sample(corpus, options.passages)
        for timer in parts.values():
            timer.seconds = 0.0
        query = QUERY.format(number=number)
        whole, ranking = timed(partial(retriever.rank, query, texts), options.device)
        assert len(ranking) == options.passages
        if number == 0:
            continue
        queries["query"].append(whole)
        for name, timer in parts.items():
            queries[name].append(timer.seconds)
        queries["rest"].append(whole - sum(timer.seconds for timer in parts.values()))
        if number % 4 == 1:
            others["torch"].append(timed(encoder.scores_torch, options.device)[0])
            if int8 is not None:
                others["int8"].append(int8())
    assert store_of(retriever).stored.written == 0, "a passage of the corpus was not in the store"
    for name, seconds in queries.items():
        cuts = statistics.quantiles(seconds, n=20)
        print(f"{name:>6}: p50 {cuts[9] * 1e3:7.1f} ms, p95 {cuts[18] * 1e3:7.1f} ms")
    typical = statistics.median(queries["query"])
    print(f"the store is {statistics.median(queries['store']) / typical:.2f} of a query")
    for name, seconds in others.items():
        if seconds:
            median = statistics.median(seconds)
            print(f"cross-encoder, {name}: {median * 1e3:.0f} ms, {median / typical:.1f} times a query")
    print(json.dumps({name: [round(second, 5) for second in seconds] for name, seconds in (queries | others).items()}))


class Timer:
    """Adds up the seconds that a method takes."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds = 0.0
        method: Callable[..., Any] = getattr(owner, name)

        def measured(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, measured)


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    if device != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
