"""Whether the evidence of a list tells lists with their relevant passages from the same lists without.

    python -m benchmarks.abstain [--hotpotqa hotpotqa_100.json] [--nq nq-open-oracle.jsonl.gz] [--handbook]

The area under the ROC curve on part 2 of each set, which had no part in choosing what evidence is: with the relevant
passages taken out, and with passages of other lists in their stead, so that both lists are equally long; then for lists
of 5, 10, 20 and 50 passages, filled up or cut with passages of other lists, each length for itself and all together.
The data is not part of this project.
"""

import argparse
import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from benchmarks.second_model import examples_of
from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.core.heads import Mode
from qrhead_rag.demo import load_handbook
from qrhead_rag.evaluate.abstain import EvidencePair, calibrate, separation

LENGTHS = (5, 10, 20, 50)


def distractors(examples: Sequence[LabelledExample], number: int, count: int) -> list[Passage]:
    """Passages of other lists, drawn with the number of the list as seed."""
    own = {passage.content for passage in examples[number].documents}
    others = {passage.content: passage for example in examples for passage in example.documents}
    pool = [passage for content, passage in others.items() if content not in own]
    return random.Random(number).sample(pool, min(count, len(pool)))


def evidence(retriever: QRRetriever, query: str, passages: Sequence[Passage]) -> float:
    value = retriever.rank(query, passages).evidence
    assert value is not None  # the readout is `evidence`
    return value


def pairs_of(retriever: QRRetriever, examples: Sequence[LabelledExample], kind: str | int) -> list[EvidencePair]:
    """The evidence of each list with its relevant passages, and without: removed, replaced, or at a length."""
    pairs = []
    for number, example in enumerate(examples):
        right = [example.documents[index] for index in example.relevant]
        rest = [passage for index, passage in enumerate(example.documents) if index not in example.relevant]
        if kind in ("removed", "replaced"):
            whole = list(example.documents)
            without = rest if kind == "removed" else [*rest, *distractors(examples, number, len(right))]
        else:
            others = distractors(examples, number, int(kind))
            whole, without = [*right, *rest, *others][: int(kind)], [*rest, *others][: int(kind)]
        pairs.append(EvidencePair(*(evidence(retriever, example.query, passages) for passages in (whole, without))))
    return pairs


def handbook_pairs(retriever: QRRetriever, short: bool) -> list[EvidencePair]:
    """The evidence of the handbook for each of its questions, whole or in lists of 5, with the answer and without."""
    handbook, questions = load_handbook()
    pairs = []
    for number, question in enumerate(questions):
        right = [passage for passage in handbook if passage.id in question.relevant][:1]
        rest = [passage for passage in handbook if passage.id not in question.relevant]
        others = [rest[(7 * number + index) % len(rest)] for index in range(5)]
        lists = ([*right, *others[:4]], others) if short else (handbook, rest)
        pairs.append(EvidencePair(*(evidence(retriever, question.query, passages) for passages in lists)))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hotpotqa", type=Path)
    parser.add_argument("--nq", type=Path)
    parser.add_argument("--handbook", action="store_true")
    parser.add_argument("--part", type=int, default=2)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--modes", nargs="+", default=["late"])
    parser.add_argument("--kinds", nargs="+", default=["removed", "replaced", *map(str, LENGTHS)])
    options = parser.parse_args()
    modes: list[Mode] = options.modes
    for mode in modes:
        retriever = QRRetriever.from_pretrained(mode=mode, readout="evidence", cache_bytes=3 * 2**30)
        for name, short in (("short lists of the handbook", True), ("handbook", False)) if options.handbook else ():
            pairs = handbook_pairs(retriever, short)
            more = sum(with_answer > without for with_answer, without in pairs)
            print(f"{name} {mode}: AUC {separation(pairs).mean:.3f}, {more} of {len(pairs)} have more with", flush=True)
        for name, file in (("hotpotqa", options.hotpotqa), ("nq", options.nq)):
            examples = examples_of(file, options.part, options.examples) if file else []
            by_length = {}
            for kind in options.kinds if file else ():
                pairs = pairs_of(retriever, examples, kind)
                area, floor = separation(pairs), calibrate(pairs, max_wrong=0.1)
                kept = (
                    f"{floor.kept:.2f} kept, {floor.passed_on:.2f} passed on" if floor.reason is None else floor.reason
                )
                values = [sorted(values)[len(values) // 2] for values in zip(*pairs, strict=True)]
                print(
                    f"{name} {mode} {kind}: AUC {area.mean:.3f} ({area.low:.3f} to {area.high:.3f}); median evidence "
                    f"{values[0]:.4f} with, {values[1]:.4f} without; floor at 10% wrong, held out: {kept}",
                    flush=True,
                )
                if kind.isdigit():
                    by_length[kind] = pairs
            if by_length:
                area = separation(list(chain(*by_length.values())))
                print(f"{name} {mode}, lengths {', '.join(by_length)} together: AUC {area.mean:.3f}", flush=True)


if __name__ == "__main__":
    main()
