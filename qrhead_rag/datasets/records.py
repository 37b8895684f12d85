"""Records of a file of labelled data, each with the line it stands on, and what is wrong with those that are malformed.

This file knows no format.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.files import parse_json


class MalformedRecord(NamedTuple):
    """A record that could not be used: where it stands and why. `str()` gives `file:line: reason`."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class DatasetError(ValueError):
    """Records of a data set that could not be used, each with file and line."""

    def __init__(self, problems: Sequence[MalformedRecord]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:10]]
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown)} more")
        super().__init__(
            f"{len(self.problems)} malformed records; mend them, or skip them with skip_bad=True (--skip-bad):\n  "
            + "\n  ".join(shown)
        )


_FOREIGN = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes


Record = TypeVar("Record", bound=BaseModel)


Found: TypeAlias = Iterator[LabelledExample | MalformedRecord]


class RawRecord(NamedTuple):
    """One JSON value of a file and the line on which it begins, from 1."""

    line: int
    value: Any


def read_text(path: Path) -> str:
    """The text of a file, which may be gzipped (its name ends in .gz); `foreign_bytes` tells what in it is no UTF-8.

    Raises:
        ValueError: a gzipped file that is cut off or damaged.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file ({error}); fetch it again") from error
    # bytes that are no UTF-8 stay in their place, so that only the record they are in is malformed
    return content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")


def foreign_bytes(text: str) -> str | None:
    """What is wrong with a text of `read_text` that is not all UTF-8; None where it is.

    >>> foreign_bytes("caf\\udce9"), foreign_bytes("café")
    ('not UTF-8: byte 0xe9', None)
    """
    found = _FOREIGN.search(text)
    return None if found is None else f"not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x}"


def json_records(path: Path) -> Iterator[RawRecord | MalformedRecord]:
    """The records of a JSON file: the elements of an array, one object, or one object a line (JSONL).

    A line of JSONL that does not parse is malformed and the next one is read; inside an array nothing can be found
    again after a syntax error, so that error ends the file.
    """
    text = read_text(path)
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        yield from _array_elements(path, text, start + 1)
        return
    try:
        whole = parse_json(text)
    except json.JSONDecodeError as error:
        if text[start:].split("\n", 1)[0].strip() == "{":  # one object over many lines, not one a line
            yield MalformedRecord(path, error.lineno, f"not JSON: {error.msg}")
        else:
            yield from _lines(path, text)
    else:
        line = 1 + text.count("\n", 0, start)
        foreign = foreign_bytes(text)
        yield MalformedRecord(path, line, foreign) if foreign else RawRecord(line, whole)


def _lines(path: Path, text: str) -> Iterator[RawRecord | MalformedRecord]:
    # str.splitlines would also cut at U+2028 and its like, which may stand unescaped inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if foreign := foreign_bytes(line):
            yield MalformedRecord(path, number, foreign)
            continue
        try:
            yield RawRecord(number, parse_json(line))
        except json.JSONDecodeError as error:
            yield MalformedRecord(path, number, f"not JSON: {error.msg} at column {error.colno}")


def _array_elements(path: Path, text: str, at: int) -> Iterator[RawRecord | MalformedRecord]:
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    at = _skip_space(text, at)
    try:
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            value, end = decoder.raw_decode(text, at)
            foreign = foreign_bytes(text[at:end])
            yield MalformedRecord(path, line, foreign) if foreign else RawRecord(line, value)
            at = _skip_space(text, end)
            if text[at : at + 1] == ",":
                at = _skip_space(text, at + 1)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("expected ',' or ']'", text, at)
    except json.JSONDecodeError as error:
        yield MalformedRecord(path, error.lineno, f"not JSON: {error.msg}; nothing after it was read")
    except (RecursionError, ValueError) as error:
        yield MalformedRecord(path, line, f"not JSON: {error}; nothing after it was read")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def parse_records(
    path: Path,
    records: Iterable[RawRecord | MalformedRecord],
    schema: type[Record],
    to_examples: Callable[[Record, int], Iterable[LabelledExample | ValueError]],
) -> Found:
    """Examples of each record, or why there is none.

    Args:
        path: the file, for the report.
        records: what `json_records` found in it.
        schema: the format's record, as a pydantic model.
        to_examples: a record and its place in the file (from 0) to the examples in it. A ValueError it raises makes the
            rest of the record malformed; one it yields stands for a single bad example, and the others go on.
    """
    for place, raw in enumerate(records):
        if isinstance(raw, MalformedRecord):
            yield raw
            continue
        try:
            for found in to_examples(schema.model_validate(raw.value), place):
                yield MalformedRecord(path, raw.line, reason(found)) if isinstance(found, ValueError) else found
        except ValueError as error:
            yield MalformedRecord(path, raw.line, reason(error))


def reason(error: ValueError) -> str:
    """What is wrong, in one line; of a pydantic error the first three places and what was expected there."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = []
    for one in error.errors(include_url=False):
        where = ".".join(str(part) for part in one["loc"])
        found.append(f"{where}: {one['msg']}" if where else one["msg"])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
