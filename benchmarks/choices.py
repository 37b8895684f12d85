"""What `independent` and `late` care about: the measurements behind how they lay out a document and a query.

Each line changes one thing: the label before a document, where the query stands, the temperature of the heads' softmax,
and whether the heads see the opening of the prompt, where attention rests that finds nothing (attention sinks).
nDCG@10 over HotpotQA lists in shuffled order; the data is not part of this project.

    python -m benchmarks.choices HOTPOTQA.json [--examples 50]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

import qrhead_rag.core.attention_function as attention_function
import qrhead_rag.core.prompt
import qrhead_rag.ranking.per_passage
from benchmarks.warm import HEADS
from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.core.attention import HeadReader
from qrhead_rag.core.heads import Mode
from qrhead_rag.datasets.load import load_examples, ordered, sample_examples
from qrhead_rag.evaluate.metrics import measure, paired_test
from qrhead_rag.ranking.per_passage import PassagePieces, PerPassage
from qrhead_rag.ranking.store import store_of

Change = Callable[[], Any]


@contextmanager
def label(text: str) -> Iterator[None]:
    with (
        patch.object(qrhead_rag.core.prompt, "CONSTANT_LABEL", text),
        patch.object(qrhead_rag.ranking.per_passage, "CONSTANT_LABEL", text),
    ):
        yield


def position(tokens: int) -> Any:
    return patch.object(PerPassage, "_query_position", lambda self, listed: tokens)


def temperature(value: float) -> Any:
    plain = attention_function._queries

    def queries(*args: Any) -> Tensor:  # scaling a query scales its product with every key
        return plain(*args) / value

    return patch.object(attention_function, "_queries", queries)


def opening_seen() -> Any:
    plain = HeadReader.read

    def read(self: HeadReader, *args: Any, **options: Any) -> Any:
        return plain(self, *args, **(options | {"hidden": 0}))

    return patch.object(HeadReader, "read", read)


def numbered(example: LabelledExample) -> LabelledExample:
    documents = [Passage(text=f"[{number}] {d.content}") for number, d in enumerate(example.documents, start=1)]
    return example.model_copy(update={"documents": tuple(documents)})


def ndcg(retriever: QRRetriever, examples: list[LabelledExample]) -> list[float]:
    rankings = [[ranked.index for ranked in retriever.rank(e.query, e.documents)] for e in examples]
    return measure(rankings, examples, ["nDCG@10"])["nDCG@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--examples", type=int, default=50)
    options = parser.parse_args()
    sample = sample_examples(load_examples(options.data), count=options.examples)
    examples = [ordered(example, "shuffled") for example in sample]
    base = QRRetriever.from_pretrained(device="cpu", heads=HEADS)
    print(f"{len(examples)} lists, heads {HEADS}, nDCG@10; difference to the first line with p of a paired test")
    modes: tuple[Mode, ...] = ("late", "independent")
    for mode in modes:

        def retriever(mode: Mode = mode) -> QRRetriever:
            return QRRetriever(
                base.model, base.tokenizer, model_name=base.model_name, heads=HEADS, mode=mode, cache_bytes=6 * 2**30
            )

        kept = retriever()  # documents are run once for all that changes the query alone
        as_shipped = ndcg(kept, examples)
        print(f"{mode}: as shipped {sum(as_shipped) / len(as_shipped):.3f}", flush=True)
        same_documents: dict[str, Change] = {
            "query at position 512": lambda: position(512),
            "query at position 2048": lambda: position(2048),
            "temperature 0.7": lambda: temperature(0.7),
            "temperature 1.5": lambda: temperature(1.5),
            "opening seen by the heads": opening_seen,
        }
        other_documents: dict[str, tuple[Change, list[LabelledExample]]] = {
            "label [i]": (lambda: label(""), [numbered(example) for example in examples]),
            "no label": (lambda: label(""), examples),
        }

        def report(name: str, values: list[float], shipped: list[float] = as_shipped, mode: Mode = mode) -> None:
            test = paired_test(values, shipped)
            mean = sum(values) / len(values)
            print(f"{mode}: {name} {mean:.3f} ({test.difference:+.3f}, p = {test.p_value:.2f})", flush=True)

        for name, change in same_documents.items():
            asked = retriever()
            for key, (entry, _) in store_of(kept).cache._entries.items():
                if isinstance(entry, PassagePieces):  # not the lists, which hold what the null query found
                    store_of(asked).cache.put(key, entry)
            with change():
                report(name, ndcg(asked, examples))
        for name, (change, lists) in other_documents.items():
            with change():
                report(name, ndcg(retriever(), lists))


if __name__ == "__main__":
    main()
