"""Rankings by a model in half precision against those of the same model in float32, as Kendall's tau (scipy, tau-b).

Queries and keys of the selected heads are raised to float32 before their product, whatever the model's dtype; weights
and hidden states are not. Model: the embedded one with its four heads; documents shuffled with a fixed seed. A tau
of 1 is the same order, and of ten documents each swap of two neighbours costs 0.044.

    python -m benchmarks.precision hotpotqa.json --lists 40

DATA is labelled data in any format that `qrhead detect` reads.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import get_args

import torch
from scipy.stats import kendalltau

from benchmarks.warm import HEADS
from qrhead_rag import LabelledExample, QRRetriever
from qrhead_rag.core.heads import Mode
from qrhead_rag.datasets.load import load_examples, ordered, sample_examples

MODES = get_args(Mode)
DTYPES = ("float16", "bfloat16")


def scores_of(mode: str, dtype: str, examples: Sequence[LabelledExample]) -> list[list[float]]:
    retriever = QRRetriever.from_pretrained(heads=HEADS, mode=mode, dtype=dtype, device="cpu", cache_bytes=0)
    assert retriever.model.dtype == getattr(torch, dtype)
    return [retriever.score(example.query, example.documents) for example in examples]


def agreement(halves: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> list[float]:
    """Kendall's tau of each list."""
    return [round(float(kendalltau(a, b).statistic), 9) for a, b in zip(halves, reference, strict=True)]


def same_first(halves: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> int:
    """Lists whose best document is the same."""
    return sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(halves, reference, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--lists", type=int, default=40)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    options = parser.parse_args()
    examples = [
        ordered(example, "shuffled") for example in sample_examples(load_examples(options.data), count=options.lists)
    ]
    sizes = sorted({len(example.documents) for example in examples})
    print(f"{len(examples)} lists of {', '.join(map(str, sizes))} documents, heads {HEADS}, against float32")
    print(f"{'mode':12} {'dtype':9} {'mean tau':>8} {'least':>6} {'same order':>10} {'same first':>10} {'seconds':>8}")
    for mode in options.modes:
        reference = scores_of(mode, "float32", examples)
        for dtype in options.dtypes:
            begin = time.perf_counter()
            halves = scores_of(mode, dtype, examples)
            seconds = time.perf_counter() - begin
            taus = agreement(halves, reference)
            same = sum(tau == 1 for tau in taus)
            print(
                f"{mode:12} {dtype:9} {statistics.mean(taus):8.3f} {min(taus):6.3f} {same:10} "
                f"{same_first(halves, reference):10} {seconds:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
