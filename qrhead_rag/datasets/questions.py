"""Readers of question sets, whose records carry their own passages: QRHead's JSON, HotpotQA (and 2WikiMultihopQA, which
shares its format), MuSiQue, retriever output as DPR writes it (Natural Questions), and plain JSONL.

Each format is a pydantic model of its record; unused fields may be missing.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.bm25 import BM25, unmatched_warning
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.passages import document_of
from qrhead_rag.datasets.records import Identifier, ParsedExamples, json_records, parse_records
from qrhead_rag.datasets.words import phrase_pattern
from qrhead_rag.files import write_json_lines

FILLED_LENGTH = 20  # documents in a list filled with negatives, by default


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Paragraph(_Record):
    idx: Identifier
    title: str | None = None
    paragraph_text: str
    is_supporting: bool = False

    def passage(self) -> Passage:
        return Passage(text=self.paragraph_text.strip(), title=self.title or None, id=self.idx)


class _QRHead(_Record):
    idx: Identifier
    question: str
    paragraphs: list[_Paragraph]
    gt_docs: list[Identifier]


def read_qrhead(path: Path) -> ParsedExamples:
    """The JSON of the published QRHead code: idx, question, paragraphs[idx, title, paragraph_text], gt_docs."""

    def examples(record: _QRHead, index: int) -> Iterator[LabelledExample]:
        ids = [paragraph.idx for paragraph in record.paragraphs]
        yield LabelledExample(
            id=record.idx,
            query=record.question,
            documents=tuple(paragraph.passage() for paragraph in record.paragraphs),
            relevant=_indices(ids, record.gt_docs, "gt_docs", "paragraph idx"),
        )

    return parse_records(path, json_records(path), _QRHead, examples)


class _HotpotQA(_Record):
    id: Identifier | None = Field(None, validation_alias=AliasChoices("_id", "id"))
    question: str
    answer: str | None = None
    context: list[tuple[str, list[str]]]
    supporting_facts: list[tuple[str, int]]
    type: str | None = None
    level: str | None = None

    @field_validator("context", "supporting_facts", mode="before")
    @classmethod
    def _columns_to_rows(cls, value: Any) -> Any:
        # the copy on the Hugging Face hub keeps columns: {"title": [...], "sentences": [...]}
        if isinstance(value, dict) and "title" in value and len(value) == 2:
            columns = value["title"], next(value[name] for name in value if name != "title")
            if all(isinstance(column, list) for column in columns):
                return list(zip(*columns, strict=True))
        return value


def read_hotpotqa(path: Path) -> ParsedExamples:
    """HotpotQA and 2WikiMultihopQA: context[title, sentences], supporting_facts[title, sentence].

    A paragraph is relevant when a supporting fact names its title.
    """

    def examples(record: _HotpotQA, index: int) -> Iterator[LabelledExample]:
        titles = [title for title, _ in record.context]
        supporting = {title for title, _ in record.supporting_facts}
        if absent := sorted(supporting - set(titles)):
            raise ValueError(f"supporting_facts name {absent}, which are not titles of the context {titles}")
        yield LabelledExample(
            id=record.id or str(index),
            query=record.question,
            answer=record.answer,
            documents=tuple(
                Passage(title=title, text=" ".join(sentence.strip() for sentence in sentences), id=title)
                for title, sentences in record.context
            ),
            relevant=tuple(i for i, title in enumerate(titles) if title in supporting),
            metadata={"type": record.type, "level": record.level},
        )

    return parse_records(path, json_records(path), _HotpotQA, examples)


class _MuSiQue(_Record):
    id: Identifier
    question: str
    answer: str | None = None
    answer_aliases: list[str] = []
    paragraphs: list[_Paragraph]


def read_musique(path: Path) -> ParsedExamples:
    """MuSiQue: paragraphs[idx, title, paragraph_text, is_supporting]; the unanswerable have no relevant one."""

    def examples(record: _MuSiQue, index: int) -> Iterator[LabelledExample]:
        yield LabelledExample(
            id=record.id,
            query=record.question,
            answer=record.answer,
            documents=tuple(paragraph.passage() for paragraph in record.paragraphs),
            relevant=tuple(i for i, paragraph in enumerate(record.paragraphs) if paragraph.is_supporting),
            metadata={"answers": record.answer_aliases},
        )

    return parse_records(path, json_records(path), _MuSiQue, examples)


class _Context(_Record):
    id: Identifier | None = None
    title: str | None = None
    text: str
    hasanswer: bool = Field(False, validation_alias=AliasChoices("hasanswer", "has_answer"))
    isgold: bool | None = None

    def passage(self) -> Passage:
        return Passage(text=self.text, title=self.title or None, id=self.id)


class _DPR(_Record):
    id: Identifier | None = None
    question: str
    answers: list[str]
    ctxs: list[_Context]


def read_dpr(path: Path, candidates: int | None = None) -> ParsedExamples:
    """Retriever output as DPR writes it: question, answers, ctxs[title, text, hasanswer, isgold].

    Relevant are the passages marked `isgold`, or those with `hasanswer` where none says `isgold`. Lists that hold
    nothing but relevant passages are filled with the passages of the whole file that BM25 ranks best for the question,
    except those that contain an answer; the relevant passages are ranked among them by BM25.

    Args:
        path: the file.
        candidates: length of a filled list (20 where None).
    """

    def examples(record: _DPR, index: int) -> Iterator[LabelledExample]:
        marked = any(context.isgold is not None for context in record.ctxs)
        yield LabelledExample(
            id=str(index) if record.id is None else record.id,
            query=record.question,
            answer=record.answers[0] if record.answers else None,
            documents=tuple(context.passage() for context in record.ctxs),
            relevant=tuple(
                i for i, context in enumerate(record.ctxs) if (context.isgold if marked else context.hasanswer)
            ),
            metadata={"answers": record.answers},
        )

    records = list(parse_records(path, json_records(path), _DPR, examples))
    bare = [r for r in records if isinstance(r, LabelledExample) and len(r.relevant) == len(r.documents)]
    if not bare:
        return iter(records)
    pool = list({(passage.title, passage.text): passage for record in bare for passage in record.documents}.values())
    bm25 = BM25([passage.content for passage in pool])
    filled = {id(record): _fill_list(record, pool, bm25, candidates or FILLED_LENGTH) for record in bare}
    unmatched = [record.query for record in bare if not bm25.matches(record.query)]
    warned = [unmatched_warning(unmatched, len(bare))] if unmatched else []
    return chain((filled.get(id(record), record) for record in records), warned)


def _fill_list(example: LabelledExample, pool: Sequence[Passage], bm25: BM25, length: int) -> LabelledExample:
    gold = {(passage.title, passage.text) for passage in example.documents}
    answers = [answer for answer in example.metadata["answers"] if answer.strip()]
    answered = phrase_pattern(answers) if answers else None
    chosen: list[Passage] = []
    negatives = 0
    for passage in (pool[index] for index in bm25.best(example.query, len(pool))):
        if (passage.title, passage.text) in gold:
            chosen.append(passage)
        elif negatives < length - len(gold) and not (answered and answered.search(passage.content)):
            chosen.append(passage)
            negatives += 1
    relevant = tuple(i for i, passage in enumerate(chosen) if (passage.title, passage.text) in gold)
    return example.model_copy(update={"documents": tuple(chosen), "relevant": relevant})


class _Plain(_Record):
    model_config = ConfigDict(extra="forbid")

    id: Identifier | None = None
    query: str = Field(validation_alias=AliasChoices("query", "question"))
    documents: list[Any]
    relevant: list[int] | list[str]
    grades: list[int] = []
    missed: list[int] = []
    answer: str | None = None
    metadata: dict[str, Any] = {}


def read_jsonl(path: Path) -> ParsedExamples:
    """Plain JSONL, a LabelledExample on each line: query, documents (texts, or objects with text, title, id), relevant.

    `relevant` are indices into documents, or document ids where they are strings. `write_jsonl` writes this format.
    """

    def examples(record: _Plain, index: int) -> Iterator[LabelledExample]:
        documents = [document_of(value, index) for index, value in enumerate(record.documents)]
        named = [name for name in record.relevant if isinstance(name, str)]
        ids = [document.id or "" for document in documents]
        yield LabelledExample(
            id=str(index) if record.id is None else record.id,
            query=record.query,
            answer=record.answer,
            documents=tuple(documents),
            relevant=_indices(ids, named, "relevant", "document id")
            if named
            else tuple(index for index in record.relevant if isinstance(index, int)),
            grades=tuple(record.grades),
            missed=tuple(record.missed),
            metadata=record.metadata,
        )

    return parse_records(path, json_records(path), _Plain, examples)


def write_jsonl(examples: Sequence[LabelledExample], path: str | Path) -> None:
    """Write examples as plain JSONL, which `read_jsonl` reads back equal: a way to reuse candidate lists."""
    write_json_lines(path, (example.model_dump() for example in examples))


def _indices(ids: Sequence[str], named: Sequence[str], field: str, what: str) -> tuple[int, ...]:
    if unknown := [name for name in named if name not in ids]:
        raise ValueError(f"{field} names {unknown}; expected a {what} among {list(ids)[:20]}")
    if repeated := [name for name in named if ids.count(name) > 1]:
        raise ValueError(f"{field} names {repeated}, which several documents have; expected a {what} of one document")
    return tuple(ids.index(name) for name in named)
