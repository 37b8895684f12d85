"""Records of a file of labelled data, each with the line it stands on, and what is wrong with those that are malformed.

No format is named here.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, Field, ValidationError

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
        lines = [str(problem) for problem in self.problems[:10]]
        if len(self.problems) > len(lines):
            lines.append(f"and {len(self.problems) - len(lines)} more")
        super().__init__(
            f"{len(self.problems)} malformed records; mend them, or skip them with skip_bad=True (--skip-bad):\n  "
            + "\n  ".join(lines)
        )


_FOREIGN = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes


Record = TypeVar("Record", bound=BaseModel)

ParsedExamples: TypeAlias = Iterator[LabelledExample | MalformedRecord | UserWarning]
"""What every reader yields: examples, the records that could not be used, and warnings about a file as a whole."""

Identifier: TypeAlias = Annotated[str, Field(coerce_numbers_to_str=True)]
"""An id, which may be a number in the file."""


class RawRecord(NamedTuple):
    """One JSON value of a file and the line on which it begins, from 1."""

    line: int
    value: Any


def read_text(path: Path) -> str:
    """The text of a file, which may be gzipped (its name ends in .gz); `foreign_bytes` reports what in it is not UTF-8.

    Raises:
        ValueError: a gzip file that is truncated or damaged.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file ({error}); fetch it again") from error
    # undecodable bytes are kept, so that only the record they are in is malformed
    return content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")


def foreign_bytes(text: str) -> str | None:
    """The first byte of a text from `read_text` that is not UTF-8, as a message; None if all of it is.

    >>> foreign_bytes("caf\\udce9"), foreign_bytes("café")
    ('not UTF-8: byte 0xe9', None)
    """
    match = _FOREIGN.search(text)
    return None if match is None else f"not UTF-8: byte 0x{ord(match[0]) - 0xDC00:02x}"


def json_records(path: Path) -> Iterator[RawRecord | MalformedRecord]:
    """The records of a JSON file: the elements of an array, one object, or one object a line (JSONL).

    A line of JSONL that does not parse is malformed and the next line is read. Inside an array there is no way to
    resume after a syntax error, so that error ends the file.
    """
    return parse_json_records(read_text(path), path)


def parse_json_records(text: str, path: Path) -> Iterator[RawRecord | MalformedRecord]:
    """As `json_records`, of a text that was read; `path` is named in what is malformed."""
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
    # str.splitlines would also split at U+2028, which may occur unescaped inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        foreign = foreign_bytes(line)
        yield MalformedRecord(path, number, foreign) if foreign else parse_json_line(line, path, number)


def parse_json_line(line: str, path: Path, number: int) -> RawRecord | MalformedRecord:
    """The record on a line of JSONL, or why there is none."""
    try:
        return RawRecord(number, parse_json(line))
    except json.JSONDecodeError as error:
        whole = "; expected a whole object on each line" if line.strip() in ("[", "{") else ""
        return MalformedRecord(path, number, f"not JSON: {error.msg} at column {error.colno}{whole}")


def _array_elements(path: Path, text: str, offset: int) -> Iterator[RawRecord | MalformedRecord]:
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    offset = _skip_space(text, offset)
    try:
        while text[offset : offset + 1] != "]":
            line, counted = line + text.count("\n", counted, offset), offset
            value, end = decoder.raw_decode(text, offset)
            foreign = foreign_bytes(text[offset:end])
            yield MalformedRecord(path, line, foreign) if foreign else RawRecord(line, value)
            offset = _skip_space(text, end)
            if text[offset : offset + 1] == ",":
                offset = _skip_space(text, offset + 1)
            elif text[offset : offset + 1] != "]":
                raise json.JSONDecodeError("expected ',' or ']'", text, offset)
        if (rest := _skip_space(text, offset + 1)) < len(text):
            raise json.JSONDecodeError("the array ends before this line", text, rest)
    except json.JSONDecodeError as error:
        yield MalformedRecord(path, error.lineno, f"not JSON: {error.msg}; nothing after it was read")
    except (RecursionError, ValueError) as error:
        yield MalformedRecord(path, line, f"not JSON: {error}; nothing after it was read")


def _skip_space(text: str, offset: int) -> int:
    while text[offset : offset + 1].isspace():
        offset += 1
    return offset


def parse_records(
    path: Path,
    records: Iterable[RawRecord | MalformedRecord],
    schema: type[Record],
    to_examples: Callable[[Record, int], Iterable[LabelledExample | ValueError]],
) -> ParsedExamples:
    """The examples in each record, or why there are none.

    Args:
        path: the file, for the report.
        records: what `json_records` read from it.
        schema: the format's record, as a pydantic model.
        to_examples: a record and its index in the file to the examples in it. A ValueError that it raises makes the
            rest of the record malformed; one that it yields stands for a single bad example.
    """
    for index, raw in enumerate(records):
        if isinstance(raw, MalformedRecord):
            yield raw
            continue
        try:
            for example in to_examples(schema.model_validate(raw.value), index):
                if isinstance(example, ValueError):
                    yield MalformedRecord(path, raw.line, summarize_error(example))
                else:
                    yield example
        except ValueError as error:
            yield MalformedRecord(path, raw.line, summarize_error(error))


def summarize_error(error: ValueError) -> str:
    """An error as one line; of a pydantic error the first three fields and what was expected there."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = []
    for detail in error.errors(include_url=False):
        field = ".".join(str(part) for part in detail["loc"])
        problems.append(f"{field}: {detail['msg']}" if field else detail["msg"])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
