"""Two actors on Ray against one process, and whether a long run stays in flat memory.

    python -m benchmarks.ray_scale [--lists 200]
    python -m benchmarks.ray_scale --stream [--lists 100000]

The first ranks the same lists with the embedded model one after the other in this process, then on two actors, each
model on one thread, and prints both sides and their ratio. What comes before the first list (starting Python, loading
the model) is excluded on both sides and printed separately. The second runs tiny lists through a random model of two
layers on two actors and prints the resident memory of this process and of the actors during the run.
"""

import argparse
import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read when torch is imported

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.warm import HEADS, stretches
from qrhead_rag import QRRetriever
from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.rank import rank_dataset
from qrhead_rag.files import write_json_lines

POOL = Pool(concurrency=(2, 2), cpus=1)


def write_lists(file: Path, number: int, documents: int, words: int) -> list[dict]:
    """Write lists of passages of the handbook, no two alike."""
    texts = stretches(words)
    lists = [
        {
            "id": index,
            "query": f"Who keeps the key of store {index}?",
            "documents": [f"{index}: {text}" for text in islice(texts, documents)],
        }
        for index in range(number)
    ]
    write_json_lines(file, lists)
    return lists


def throughput(folder: Path, number: int) -> None:
    lists = write_lists(folder / "lists.jsonl", number, documents=5, words=24)
    torch.set_num_threads(1)
    retriever = QRRetriever.from_pretrained(device="cpu", heads=HEADS, mode="listwise", cache_bytes=0)
    retriever.rank(lists[0]["query"], lists[0]["documents"])
    tokens = sum(retriever.count_tokens(text) for record in lists for text in (record["query"], *record["documents"]))
    print(f"{number} lists of {tokens / number:.0f} tokens, {tokens} in all", flush=True)
    start = time.perf_counter()
    serial = [retriever.rank(record["query"], record["documents"]) for record in lists]
    alone = time.perf_counter() - start
    print(f"one process: {alone:.1f} s, {number / alone:.2f} lists/s, {tokens / alone:.0f} tokens/s", flush=True)
    del retriever
    start = time.perf_counter()
    options = {"heads": HEADS, "mode": "listwise", "device": "cpu", "cache_bytes": 0}
    done = rank_dataset([folder / "lists.jsonl"], folder / "out", pool=POOL, **options)
    whole = time.perf_counter() - start
    print(
        f"two actors: {done.seconds:.1f} s, {done.records_per_second:.2f} lists/s, {done.tokens_per_second:.0f} "
        f"tokens/s, {done.tokens_per_actor_second:.0f} tokens/s an actor; {whole - done.seconds:.1f} s more to start "
        "and to end"
    )
    parts = sorted((folder / "out").glob("part-*"))
    rows = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    apart = max(
        abs(score - expected.score)
        for row, ranking in zip(rows, serial, strict=True)
        for score, expected in zip(row["scores"], ranking, strict=True)
    )
    same = all(row["ranking"] == [r.index for r in ranking] for row, ranking in zip(rows, serial, strict=True))
    print(f"rankings {'equal' if same else 'DIFFER'}, largest difference of a score {apart:.1e}")
    print(f"{done.records_per_second * alone / number:.2f} times the throughput (goal 1.6)")


def stream(folder: Path, number: int) -> None:
    base = QRRetriever.from_pretrained(device="cpu", heads=[(0, 0)])
    config = AutoConfig.for_model(
        "llama",
        vocab_size=base.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tiny")
    base.tokenizer.save_pretrained(folder / "tiny")
    del base
    write_lists(folder / "lists.jsonl", number, documents=2, words=3)
    measured: list[tuple[int, int, int]] = []

    def measure(progress) -> None:
        if progress.done and progress.done >= len(measured) * number / 20:
            here = psutil.Process()
            actors = [p for p in here.children(recursive=True) if p.name().startswith("ray::MapWorker")]
            measured.append((progress.done, here.memory_info().rss, sum(p.memory_info().rss for p in actors)))
            print(
                f"{measured[-1][0]} lists: this process {measured[-1][1] >> 20} MB, {len(actors)} actors "
                f"{measured[-1][2] >> 20} MB, {progress.records_per_second:.0f} lists/s",
                flush=True,
            )

    done = rank_dataset(
        [folder / "lists.jsonl"],
        folder / "out",
        model=str(folder / "tiny"),
        heads=[(0, 0), (1, 1)],
        device="cpu",
        cache_bytes=2**20,
        pool=POOL,
        on_progress=measure,
    )
    # Memory that the first lists load is no growth, so the end is compared with a tenth of the run.
    early, late = (max(m[1] + m[2] for m in part) for part in (measured[2:4], measured[-2:]))
    print(f"{done.done} lists in {done.seconds:.0f} s, {done.failed} failed")
    print(f"memory at the end against after a tenth: {late / early:.3f} times ({late >> 20} MB, {early >> 20} MB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=int)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.stream:
            stream(Path(folder), options.lists or 100_000)
        else:
            throughput(Path(folder), options.lists or 200)


if __name__ == "__main__":
    main()
