"""Long documents under `late`: how large the pieces are, and how their scores become a document's.

Recall@3 of the chapters that a claim about a book is drawn from (CLIPPER), for each size of piece and each way of
pooling, beside BM25. The data is not part of this project.

    python -m benchmarks.pieces CLIPPER_FOLDER [--books 3] [--claims 60] [--heads 17-3,17-4,18-6,18-7]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from torch import Tensor

from qrhead_rag import LabelledExample, QRRetriever
from qrhead_rag.core.heads import parse_heads
from qrhead_rag.core.scoring import document_scores, masked
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.load import load_examples
from qrhead_rag.evaluate.metrics import measure

PIECES = (128, 192, 256, 384, 4096)  # the largest leaves most chapters whole
METRIC = "R@3"


def best(number: int) -> Callable[[Tensor], float]:
    return lambda scores: float(scores.topk(min(number, len(scores))).values.sum())


POOLS: dict[str, Callable[[Tensor], float]] = {
    "best": best(1),
    "sum of best 2": best(2),
    "sum of best 3": best(3),
    "sum of best 5": best(5),
    "sum of best 8": best(8),
    "sum of all": lambda scores: float(scores.sum()),
    "mean of all": lambda scores: float(scores.mean()),
}


def pooled(asked: QRRetriever, claims: list[LabelledExample]) -> Iterator[dict[str, list[int]]]:
    """Rankings of one book's chapters for each claim, by each way of pooling."""
    encoded = asked.encode(claims[0].documents)
    count = len(claims[0].documents)
    for claim in claims:
        reading = encoded._list.ask([claim.query])[0]
        pieces = len(reading.document_of_piece)
        of_pieces = document_scores(
            masked(reading.calibrated.sum(dim=0), reading.piece_of, pieces), reading.piece_of, pieces
        )
        chapters = [of_pieces[reading.document_of_piece == chapter] for chapter in range(count)]
        yield {name: sorted(range(count), key=lambda chapter: -pool(chapters[chapter])) for name, pool in POOLS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--books", type=int, default=3)
    parser.add_argument("--claims", type=int, default=60)
    parser.add_argument("--heads", default="17-3,17-4,18-6,18-7")
    options = parser.parse_args()
    examples = load_examples(options.folder, skip_bad=True)
    by_book = [list(claims) for _, claims in groupby(examples, key=lambda claim: claim.metadata["book"])]
    books = [claims[:: max(1, len(claims) // options.claims)][: options.claims] for claims in by_book[: options.books]]
    claims = [claim for book in books for claim in book]
    by_words = [ranking for book in books for ranking in _bm25(book)]
    words = sum(len(document.text.split()) for book in books for document in book[0].documents)
    print(f"{len(books)} books of {words} words, {len(claims)} claims, heads {options.heads}, {METRIC}")
    print(f"BM25 {_mean(by_words, claims):.3f}")
    for size in PIECES:
        asked = QRRetriever.from_pretrained(
            device="cpu", heads=parse_heads(options.heads), mode="late", piece_tokens=size, cache_bytes=0
        )
        start = time.perf_counter()
        rankings = [ranking for book in books for ranking in pooled(asked, book)]
        results = ", ".join(f"{name} {_mean([r[name] for r in rankings], claims):.3f}" for name in POOLS)
        print(f"pieces of {size}: {results} ({time.perf_counter() - start:.0f} s)", flush=True)


def _bm25(book: list[LabelledExample]) -> list[list[int]]:
    index = BM25([document.content for document in book[0].documents])
    return [index.best(claim.query, len(book[0].documents)) for claim in book]


def _mean(rankings: list[list[int]], claims: list[LabelledExample]) -> float:
    values = measure(rankings, claims, [METRIC])[METRIC]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
