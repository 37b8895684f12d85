"""Labelled data in any supported format, named or recognised by its fields:

    examples = load_examples("hotpot_dev_distractor_v1.json")
    examples = load_examples("scifact/", candidates=50)
    examples = load_examples("longmemeval_s.json", unit="round", skip_bad=True)

A record that cannot be used is reported with file and line.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qrhead_rag.datasets.beir import read_beir
from qrhead_rag.datasets.bm25 import keep_candidates
from qrhead_rag.datasets.clipper import read_clipper
from qrhead_rag.datasets.conversations import read_locomo, read_longmemeval
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.questions import read_dpr, read_hotpotqa, read_jsonl, read_musique, read_qrhead, write_jsonl
from qrhead_rag.datasets.records import DatasetError, MalformedRecord, ParsedExamples, RawRecord, json_records

__all__ = [
    "ORDERS",
    "READERS",
    "DatasetError",
    "LabelledExample",
    "detect_format",
    "document_order",
    "load_examples",
    "ordered",
    "sample_examples",
    "write_jsonl",
]

Order: TypeAlias = Literal["given", "reversed", "shuffled"]
ORDERS: tuple[Order, ...] = ("given", "reversed", "shuffled")

READERS: dict[str, Callable[..., ParsedExamples]] = {
    "beir": read_beir,
    "clipper": read_clipper,
    "dpr": read_dpr,
    "hotpotqa": read_hotpotqa,
    "jsonl": read_jsonl,
    "locomo": read_locomo,
    "longmemeval": read_longmemeval,
    "musique": read_musique,
    "qrhead": read_qrhead,
}

# fields that only records of this format have, tried in this order
_MARKS = {
    "longmemeval": {"haystack_sessions"},
    "locomo": {"conversation", "qa"},
    "qrhead": {"paragraphs", "gt_docs"},
    "musique": {"paragraphs"},
    "hotpotqa": {"context", "supporting_facts"},
    "dpr": {"ctxs"},
    "jsonl": {"documents", "relevant"},
}


def load_examples(
    path: str | Path,
    *,
    format: str | None = None,
    unit: Literal["session", "round", "turn"] | None = None,
    candidates: int | None = None,
    split: str | None = None,
    skip_bad: bool = False,
) -> list[LabelledExample]:
    """Read labelled examples.

    Args:
        path: a file (JSON or JSONL, perhaps gzipped) or a folder (BEIR, CLIPPER).
        format: one of READERS; recognised from the fields of the first record where None.
        unit: what a document is: "session" or "round" (LongMemEval), "turn" or "session" (LoCoMo).
        candidates: length of the lists that are made here (`dpr`, `beir`: 20 where None); a data set's own lists are
            cut to the documents that BM25 ranks best.
        split: the qrels to read (`beir`: "test" where None).
        skip_bad: skip malformed records with a warning that names them.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an unknown format, or an option of another format.
        DatasetError: malformed records (each with file and line) without `skip_bad`, or no usable record.
    """
    path = Path(path)
    if candidates is not None and candidates < 2:
        raise ValueError(f"candidates={candidates}: expected at least 2 documents to rank")
    name = format or detect_format(path)
    if name not in READERS:
        raise ValueError(f"format {name!r} is unknown; expected one of {', '.join(READERS)}")
    options = _options(name, {"unit": unit, "split": split})
    if name in ("dpr", "beir"):
        options["candidates"] = candidates
    examples: list[LabelledExample] = []
    problems: list[MalformedRecord] = []
    for record in READERS[name](path, **options):
        if isinstance(record, MalformedRecord):
            problems.append(record)
        elif isinstance(record, UserWarning):
            warnings.warn(record, stacklevel=2)
        else:
            examples.append(record)
    if problems and not (skip_bad and examples):
        raise DatasetError(problems)
    if not examples:
        raise ValueError(f"{path} has no examples of the format {name}")
    if problems:
        warnings.warn(f"{path}: {DatasetError(problems)}", UserWarning, stacklevel=2)
    if candidates is None:
        return examples
    kept, unmatched = keep_candidates(examples, candidates)
    if unmatched:
        warnings.warn(unmatched, stacklevel=2)
    return kept


def _options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value, if they are options of the format."""
    allowed = {"longmemeval": {"unit"}, "locomo": {"unit"}, "beir": {"split"}}.get(name, set())
    options = {option: value for option, value in options.items() if value is not None}
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(f"{option}={value!r} is not an option of the format {name}; leave it out")
    return options


def detect_format(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no known format; the message has the fields and the known formats.
        DatasetError: the beginning of the file cannot be parsed.
    """
    if path.is_dir():
        if (path / "corpus.jsonl").exists():
            return "beir"
        if (path / "claims").is_dir():
            return "clipper"
        raise ValueError(f"{path} is neither a BEIR folder (corpus.jsonl) nor a CLIPPER one (claims/, books/)")
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {path}")
    first = list(islice(json_records(path), 20))
    fields = set().union(*(raw.value for raw in first if isinstance(raw, RawRecord) and isinstance(raw.value, dict)))
    if not fields and (problems := [raw for raw in first if isinstance(raw, MalformedRecord)]):
        raise DatasetError(problems)
    for name, marks in _MARKS.items():
        if marks <= fields:
            return name
    raise ValueError(
        f"{path} has records with the fields {sorted(fields)}, which match no known format "
        f"({', '.join(READERS)}); name it with format= (--format)"
    )


def document_order(example: LabelledExample, order: Order, seed: int = 0) -> list[int]:
    """Indices of the documents as given, reversed, or shuffled by seed, id and query (the same in every run).

    Raises:
        ValueError: an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
    indices = list(range(len(example.documents)))
    if order == "reversed":
        indices.reverse()
    elif order == "shuffled":
        indices = random.Random(f"{seed} {example.id} {example.query}").sample(indices, len(indices))
    return indices


def ordered(example: LabelledExample, order: Order, seed: int = 0) -> LabelledExample:
    """The example with its documents in that order."""
    return example.reordered(document_order(example, order, seed))


def sample_examples(
    examples: Sequence[LabelledExample], *, count: int | None = None, part: tuple[int, int] = (1, 1), seed: int = 0
) -> list[LabelledExample]:
    """A part or a random sample of the examples, in their order.

    Args:
        examples: the data set.
        count: how many at most, drawn with the seed; None is all.
        part: (2, 3) is the second of three disjoint parts of every third example: one to detect heads on, another to
            test them.
        seed: of the draw.

    Raises:
        ValueError: no such part, a count below 1.
    """
    number, parts = part
    if not 1 <= number <= parts:
        raise ValueError(f"part {number} of {parts}: expected a number from 1 to the number of parts")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: expected at least one example")
    chosen = list(examples[number - 1 :: parts])
    if count is not None and count < len(chosen):
        chosen = [chosen[i] for i in sorted(random.Random(seed).sample(range(len(chosen)), count))]
    return chosen
