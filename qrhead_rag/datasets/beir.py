"""Reader of a BEIR folder (Thakur et al., arXiv 2104.08663). The folder holds

    corpus.jsonl       _id, title, text
    queries.jsonl      _id, text
    qrels/<split>.tsv  query-id, corpus-id, score; a first line that names them may be missing

The candidates of a query are the passages that BM25 ranks best.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.bm25 import BM25, unmatched_warning
from qrhead_rag.datasets.examples import HIGHEST_GRADE, LabelledExample
from qrhead_rag.datasets.records import (
    Identifier,
    MalformedRecord,
    ParsedExamples,
    json_records,
    read_text,
    summarize_error,
)

CANDIDATES = 20


class _Text(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: Identifier = Field(validation_alias="_id")
    text: str
    title: str | None = None


class _Entry(NamedTuple):
    """A passage or query and its line in the file."""

    line: int
    passage: Passage


class _Judgement(NamedTuple):
    query: str
    document: str
    grade: int


def read_beir(folder: Path, split: str = "test", candidates: int | None = None) -> ParsedExamples:
    """One example for each judged query: the passages of the corpus that BM25 ranks best, with their grades.

    The grades of relevant passages that BM25 leaves out of the list, or that the corpus lacks, go to `missed`. Queries
    without a positive judgement are left out, as in trec_eval.

    Args:
        folder: the BEIR folder.
        split: which qrels.
        candidates: documents in a list (20 where None).

    Raises:
        FileNotFoundError: corpus, queries or the qrels of this split are missing.
    """
    qrels = folder / "qrels" / f"{split}.tsv"
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", qrels):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; a BEIR folder has corpus.jsonl, queries.jsonl, qrels/<split>.tsv"
            )
    corpus: dict[str, _Entry] = {}
    queries: dict[str, _Entry] = {}
    judged: dict[str, dict[str, int]] = {}
    yield from _read_texts(folder / "corpus.jsonl", corpus)
    yield from _read_texts(folder / "queries.jsonl", queries)
    yield from _read_judgements(qrels, queries, corpus, judged)
    yield from _lists(folder / "queries.jsonl", corpus, queries, judged, candidates or CANDIDATES)


def _lists(
    path: Path,
    corpus: Mapping[str, _Entry],
    queries: Mapping[str, _Entry],
    judged: Mapping[str, Mapping[str, int]],
    count: int,
) -> ParsedExamples:
    if not judged:
        return
    ids = list(corpus)
    bm25 = BM25([entry.passage.content for entry in corpus.values()])
    unmatched: list[str] = []
    for name, grades in judged.items():
        line, query = queries[name].line, queries[name].passage.text
        names = [ids[index] for index in bm25.best(query, count)]
        relevant = tuple(index for index, document in enumerate(names) if document in grades)
        try:
            yield LabelledExample(
                id=name,
                query=query,
                documents=tuple(corpus[document].passage for document in names),
                relevant=relevant,
                grades=tuple(grades[names[index]] for index in relevant),
                missed=tuple(grade for document, grade in grades.items() if document not in names),
            )
        except ValueError as error:
            yield MalformedRecord(path, line, summarize_error(error))
        else:
            unmatched += [] if bm25.matches(query) else [query]
    if unmatched:
        yield unmatched_warning(unmatched, len(judged))


def _read_texts(path: Path, entries: dict[str, _Entry]) -> Iterator[MalformedRecord | UserWarning]:
    """Read the texts of a file into `entries`; yields what could not be used."""
    repeated: list[str] = []
    for raw in json_records(path):
        if isinstance(raw, MalformedRecord):
            yield raw
            continue
        try:
            text = _Text.model_validate(raw.value)
        except ValueError as error:
            yield MalformedRecord(path, raw.line, summarize_error(error))
            continue
        if text.id in entries:
            repeated.append(f"{text.id!r} on line {raw.line} and before on {entries[text.id].line}")
        entries[text.id] = _Entry(raw.line, Passage(text=text.text, title=text.title or None, id=text.id))
    if repeated:
        yield UserWarning(
            f"{path}: {len(repeated)} texts have the _id of an earlier one and take its place; the first: {repeated[0]}"
        )


def _read_judgements(
    path: Path, queries: Mapping[str, _Entry], corpus: Mapping[str, _Entry], judged: dict[str, dict[str, int]]
) -> Iterator[MalformedRecord | UserWarning]:
    """Read the positive judgements of a file into `judged`; yields what could not be used."""
    grades: dict[tuple[str, str], int] = {}
    absent: dict[str, list[str]] = {"queries.jsonl": [], "corpus.jsonl": []}
    changed: list[str] = []
    for line, row in enumerate(read_text(path).split("\n"), start=1):
        if not row.strip():
            continue
        try:
            query, document, grade = _judgement(row)
        except ValueError as error:
            if line > 1 or row.split("\t")[0] in queries:  # else it names the columns, in whatever words
                yield MalformedRecord(path, line, summarize_error(error))
            continue
        if query not in queries:
            absent["queries.jsonl"].append(f"query {query!r} on line {line}")
            continue
        if document not in corpus:
            absent["corpus.jsonl"].append(f"document {document!r} on line {line}")
        if grades.get((query, document), grade) != grade:
            changed.append(f"query {query!r}, document {document!r} on line {line}")
        grades[query, document] = grade
    for (query, document), grade in grades.items():
        if grade > 0:
            judged.setdefault(query, {})[document] = grade
    if changed:
        yield UserWarning(
            f"{path}: {len(changed)} judgements change the score of an earlier one; the first: {changed[0]}"
        )
    for file, names in absent.items():
        if names:
            left_out = "left out" if file == "queries.jsonl" else "counted as missed where they are relevant"
            yield UserWarning(f"{path}: {len(names)} judgements name what is not in {file} ({names[0]}); {left_out}")


def _judgement(row: str) -> _Judgement:
    cells = row.split("\t")
    if len(cells) != 3:
        raise ValueError(f"{len(cells)} columns, expected 3 separated by tabs: query-id, corpus-id, score")
    query, document, score = cells
    try:
        grade = float(score)
    except ValueError:
        grade = float("nan")
    if not grade.is_integer() or grade > HIGHEST_GRADE:
        raise ValueError(f"score {score!r} is not a whole number up to {HIGHEST_GRADE}; expected such as 0, 1 or 2")
    return _Judgement(query, document, int(grade))
