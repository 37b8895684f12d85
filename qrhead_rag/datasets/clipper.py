"""Reader of CLIPPER (Pham et al., arXiv 2502.14854): claims about a book, its chapters as documents. The folder holds

books/<book>/<chapter>.txt   the chapters, numbered from 1
claims/<book>.csv            facts, corrupted_facts, source ("Chapter 1, 2") and columns that are not used
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.records import MalformedRecord, ParsedExamples, foreign_bytes, read_text, summarize_error

_NUMBERS = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")


def read_clipper(folder: Path) -> ParsedExamples:
    """CLIPPER, one example for each claim: the true claim (`facts`) is the query, its source chapters are relevant.

    The metadata has the book and `corrupted_facts`, the false twin of the claim.

    Raises:
        FileNotFoundError: no claims folder or no csv file in it.
    """
    files = sorted((folder / "claims").glob("*.csv"))
    if not files:
        raise FileNotFoundError(
            f"{folder / 'claims'} has no csv files; expected claims/<book>.csv and books/<book>/*.txt"
        )
    for path in files:
        yield from _claims(path, folder / "books" / path.stem)


def _claims(path: Path, book: Path) -> ParsedExamples:
    chapters: list[Passage] = []
    for chapter in _chapters(book):
        if isinstance(chapter, MalformedRecord):
            yield chapter
            return
        chapters.append(chapter)
    if not chapters:
        yield MalformedRecord(path, 1, f"no chapters beside these claims: expected numbered texts, {book}/1.txt and on")
        return
    documents = tuple(chapters)  # shared by all claims of the book
    index_of_chapter = {int(chapter.id or 0): index for index, chapter in enumerate(documents)}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.DictReader(stream)
        line, number = 2, 0
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield MalformedRecord(path, line, f"not CSV: {error}; nothing after it was read")
                return
            if row is None:
                return
            try:
                yield LabelledExample(
                    id=f"{book.name}:{number}",
                    query=_cell(row, "facts"),
                    answer="true",
                    documents=documents,
                    relevant=_relevant(_cell(row, "source"), index_of_chapter),
                    metadata={"book": book.name, "corrupted_facts": _cell(row, "corrupted_facts")},
                )
            except ValueError as error:
                yield MalformedRecord(path, line, summarize_error(error))
            line, number = rows.line_num + 1, number + 1


def _chapters(book: Path) -> Iterator[Passage | MalformedRecord]:
    for chapter, path in sorted((int(path.stem), path) for path in book.glob("*.txt") if path.stem.isdecimal()):
        text = read_text(path)
        lines = enumerate(text.split("\n"), start=1)
        bad = next(
            (MalformedRecord(path, number, problem) for number, line in lines if (problem := foreign_bytes(line))), None
        )
        yield bad or Passage(text=text.strip(), title=f"Chapter {chapter}", id=str(chapter))


def _cell(row: dict[str, str | None], column: str) -> str:
    value = row.get(column)
    if not value or not value.strip():
        raise ValueError(f"column {column!r} is empty or missing; found columns {[name for name in row if name]}")
    if foreign := foreign_bytes(value):
        raise ValueError(f"column {column!r}: {foreign}")
    return value.strip()


def _relevant(source: str, index_of_chapter: dict[int, int]) -> tuple[int, ...]:
    """Indices of the chapters that `source` names: "Chapter 3", "Chapters 1, 2, 4", "Chapters 3-5"."""
    named: set[int] = set()
    for first, last in _NUMBERS.findall(source):
        begin, end = int(first), int(last or first)
        named |= {begin, end, *range(begin, min(end, max(index_of_chapter)) + 1)}  # a typo may name billions
    if not named:
        raise ValueError(f"source {source!r} names no chapter; expected numbers, as in 'Chapters 1, 2, 4'")
    if absent := sorted(named - set(index_of_chapter)):
        raise ValueError(f"source {source!r} names chapters {absent}, the book has {sorted(index_of_chapter)}")
    return tuple(sorted(index_of_chapter[chapter] for chapter in named))
