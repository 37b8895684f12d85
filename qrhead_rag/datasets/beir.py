"""Reader of a BEIR folder (Thakur et al., arXiv 2104.08663). The folder holds

    corpus.jsonl       _id, title, text
    queries.jsonl      _id, text
    qrels/<split>.tsv  query-id, corpus-id, score

The candidates of a query are the passages that BM25 ranks best.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.records import MalformedRecord, ParsedExamples, json_records, read_text, summarize_error

CANDIDATES = 20


class _Text(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str = Field(validation_alias="_id")
    text: str
    title: str | None = None


class _Judgement(NamedTuple):
    query: str
    document: str
    grade: int


def read_beir(folder: Path, split: str = "test", candidates: int | None = None) -> ParsedExamples:
    """One example for each judged query: the passages of the corpus that BM25 ranks best, with their grades.

    The grades of relevant passages that BM25 leaves out of the list go to `missed`. Queries without a positive
    judgement are left out, as in trec_eval.

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
    corpus: dict[str, Passage] = {}
    for record in _texts(folder / "corpus.jsonl"):
        if isinstance(record, _Text):
            corpus[record.id] = Passage(text=record.text, title=record.title or None, id=record.id)
        else:
            yield record
    queries: dict[str, str] = {}
    for record in _texts(folder / "queries.jsonl"):
        if isinstance(record, _Text):
            queries[record.id] = record.text
        else:
            yield record
    judged: dict[str, dict[str, int]] = {}
    for judgement in _judgements(qrels, queries, corpus):
        if isinstance(judgement, MalformedRecord):
            yield judgement
        elif judgement.grade > 0:
            judged.setdefault(judgement.query, {})[judgement.document] = judgement.grade
    yield from _lists(corpus, queries, judged, candidates or CANDIDATES)


def _lists(
    corpus: Mapping[str, Passage], queries: Mapping[str, str], judged: Mapping[str, Mapping[str, int]], count: int
) -> Iterator[LabelledExample]:
    if not judged:
        return
    ids = list(corpus)
    bm25 = BM25([corpus[name].content for name in ids])
    for query, grades in judged.items():
        names = [ids[index] for index in bm25.best(queries[query], count)]
        relevant = tuple(index for index, name in enumerate(names) if name in grades)
        yield LabelledExample(
            id=query,
            query=queries[query],
            documents=tuple(corpus[name] for name in names),
            relevant=relevant,
            grades=tuple(grades[names[index]] for index in relevant),
            missed=tuple(grade for name, grade in grades.items() if name not in names),
        )


def _texts(path: Path) -> Iterator[_Text | MalformedRecord]:
    for raw in json_records(path):
        if isinstance(raw, MalformedRecord):
            yield raw
            continue
        try:
            yield _Text.model_validate(raw.value)
        except ValueError as error:
            yield MalformedRecord(path, raw.line, summarize_error(error))


def _judgements(
    path: Path, queries: Mapping[str, str], corpus: Mapping[str, Passage]
) -> Iterator[_Judgement | MalformedRecord]:
    for line, row in enumerate(read_text(path).rstrip("\n").split("\n")[1:], start=2):
        try:
            yield _judgement(row, queries, corpus)
        except ValueError as error:
            yield MalformedRecord(path, line, summarize_error(error))


def _judgement(row: str, queries: Mapping[str, str], corpus: Mapping[str, Passage]) -> _Judgement:
    cells = row.split("\t")
    if len(cells) != 3:
        raise ValueError(f"{len(cells)} columns, expected 3 separated by tabs: query-id, corpus-id, score")
    query, document, grade = cells
    if query not in queries:
        raise ValueError(f"query {query!r} is not in queries.jsonl")
    if document not in corpus:
        raise ValueError(f"document {document!r} is not in corpus.jsonl")
    return _Judgement(query, document, int(grade))
