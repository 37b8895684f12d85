"""What encoding once saves: every mode, asked again, against `listwise` cold; and `late` against a small cross-encoder.

    python -m benchmarks.warm [--passages 80] [--runs 5]

Each line is a ratio of two medians from this run, the two sides timed in turn. The cross-encoder is as large as the
small ones people use (6 layers, 384 wide) and random weights: its time does not depend on what it has learned.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from importlib import resources
from itertools import count, islice

import torch
from transformers import BertForSequenceClassification

from benchmarks.cross_encoder import CONFIG, seconds
from qrhead_rag import QRRetriever

HEADS = [(17, 3), (17, 4), (18, 6), (18, 7)]


def passages(number: int, words: int = 58) -> list[str]:
    """About 80 tokens each: stretches of the handbook, no two the same."""
    texts = list(islice(stretches(words), number))
    assert len(set(texts)) == number
    return texts


def stretches(words: int) -> Iterator[str]:
    """So many words of the handbook from ever other places, without end."""
    text = resources.files("qrhead_rag").joinpath("data/handbook.jsonl").read_text(encoding="utf-8")
    all_words = [word for line in text.splitlines() for word in json.loads(line)["text"].split()]
    twice = all_words * 2
    for number in count():
        start = 37 * number % len(all_words)
        yield " ".join(twice[start : start + words])


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=80)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold-runs", type=int, default=3)
    options = parser.parse_args()
    documents = passages(options.passages)
    shuffled = random.Random(0).sample(documents, len(documents))
    base = QRRetriever.from_pretrained(device="cpu", heads=HEADS)

    def with_mode(mode: str, **more: int) -> QRRetriever:
        return QRRetriever(base.model, base.tokenizer, model_name=base.model_name, heads=HEADS, mode=mode, **more)

    cold = with_mode("listwise", cache_bytes=0)
    warm, late, independent = with_mode("listwise"), with_mode("late"), with_mode("independent", cache_bytes=2**31)
    tokens = sum(cold.count_tokens(document) for document in documents)
    print(f"{len(documents)} passages, {tokens} tokens, {torch.get_num_threads()} threads")
    queries = [f"Who keeps the key of store {number} and when is it open?" for number in range(options.runs)]
    listwise_list, late_list = warm.encode(documents), late.encode(documents)
    independent.encode(documents)
    cross_encoder = BertForSequenceClassification._from_config(CONFIG, attn_implementation="sdpa").eval()
    pairs = [torch.randint(1000, 20000, (1, 20 + cold.count_tokens(document))) for document in documents]

    @torch.no_grad()
    def cross_encode() -> None:
        longest_first = sorted(pairs, key=lambda pair: -pair.shape[1])
        for start in range(0, len(pairs), 32):
            batch = longest_first[start : start + 32]
            width = batch[0].shape[1]
            ids = torch.cat([torch.nn.functional.pad(pair, (0, width - pair.shape[1])) for pair in batch])
            cross_encoder(input_ids=ids, attention_mask=(ids != 0).long())

    times: dict[str, list[float]] = {"cold": [], "warm": [], "independent": [], "late": [], "cross": []}
    listwise_list.rank("warm up"), late_list.rank("warm up")
    for run, query in enumerate(queries):
        if run < options.cold_runs:
            times["cold"].append(seconds(lambda query=query: cold.rank(query, documents)))
            order = random.Random(run).sample(shuffled, len(shuffled))
            times["independent"].append(seconds(lambda query=query, order=order: independent.rank(query, order)))
        times["warm"].append(seconds(lambda query=query: listwise_list.rank(query)))
        times["late"].append(seconds(lambda query=query: late_list.rank(query)))
        times["cross"].append(seconds(cross_encode))
    for name, against, least in [
        ("warm", "cold", 15),
        ("independent", "cold", 10),
        ("late", "cold", 80),
        ("late", "cross", 8),
    ]:
        ratio = median(times[against]) / median(times[name])
        label = {"warm": "listwise warm", "independent": "independent, new order", "late": "late, encoded"}[name]
        other = {"cold": "listwise cold", "cross": "6-layer cross-encoder"}[against]
        print(
            f"{label}: {median(times[name]) * 1e3:.0f} ms; {other}: {median(times[against]) * 1e3:.0f} ms; "
            f"{ratio:.1f} times faster (goal {least})"
        )


if __name__ == "__main__":
    main()
