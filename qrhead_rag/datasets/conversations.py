"""Readers of long conversations: LongMemEval (Wu et al., arXiv 2410.10813), LoCoMo (Maharana et al., arXiv 2402.17753).

A conversation becomes a list of documents: its sessions, its rounds (a user turn and the replies to it) or its turns.
The date of a session is the title of its documents.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.records import Identifier, ParsedExamples, json_records, parse_records, summarize_error


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Turn(_Record):
    role: str
    content: str
    has_answer: bool | None = None

    def __str__(self) -> str:
        return f"{self.role}: {self.content}"


class _LongMemEval(_Record):
    question_id: Identifier
    question_type: str
    question: str
    answer: str | int | float
    question_date: str | None = None
    haystack_dates: list[str]
    haystack_session_ids: list[Identifier]
    haystack_sessions: list[list[_Turn]]
    answer_session_ids: list[Identifier]

    @model_validator(mode="after")
    def _check_lengths(self) -> "_LongMemEval":
        counts = len(self.haystack_sessions), len(self.haystack_session_ids), len(self.haystack_dates)
        if len(set(counts)) != 1:
            raise ValueError("haystack_sessions, haystack_session_ids, haystack_dates have {}, {}, {}".format(*counts))
        if absent := sorted(set(self.answer_session_ids) - set(self.haystack_session_ids)):
            raise ValueError(f"answer_session_ids name {absent}, which are not among the haystack_session_ids")
        return self


class _Unit(NamedTuple):
    passage: Passage
    relevant: bool


def read_longmemeval(path: Path, unit: Literal["session", "round"] = "session") -> ParsedExamples:
    """LongMemEval, one example for each question.

    Questions whose id ends in `_abs` cannot be answered from the history, so nothing is relevant to them: the data
    set's own evaluation leaves them out of retrieval and asks the reader to abstain. The metadata has question_type,
    question_date, and `abstention`.

    Args:
        path: the file.
        unit: sessions (relevant by answer_session_ids), or rounds (relevant where a turn says has_answer).
    """

    def examples(record: _LongMemEval, index: int) -> Iterator[LabelledExample]:
        sessions = zip(record.haystack_session_ids, record.haystack_dates, record.haystack_sessions, strict=True)
        abstention = record.question_id.endswith("_abs")
        documents: list[_Unit] = []
        for name, date, turns in sessions:
            evidence = name in record.answer_session_ids
            if unit == "session":
                text = "\n".join(map(str, turns))
                documents.append(_Unit(Passage(text=text, title=date, id=name), evidence))
            else:
                documents += _rounds(name, date, turns, evidence)
        relevant = () if abstention else tuple(index for index, document in enumerate(documents) if document.relevant)
        if not relevant and not abstention:
            raise ValueError(f"no {unit} of {record.question_id} is marked as evidence, and it is no _abs question")
        yield LabelledExample(
            id=record.question_id,
            query=record.question,
            answer=str(record.answer),
            documents=tuple(document.passage for document in documents),
            relevant=relevant,
            metadata={
                "question_type": record.question_type,
                "question_date": record.question_date,
                "abstention": abstention,
            },
        )

    return parse_records(path, json_records(path), _LongMemEval, examples)


def _rounds(name: str, date: str, turns: list[_Turn], evidence: bool) -> list[_Unit]:
    rounds: dict[int, list[_Turn]] = {}
    for user_turns, turn in zip(accumulate(turn.role == "user" for turn in turns), turns, strict=True):
        rounds.setdefault(user_turns, []).append(turn)
    return [
        _Unit(
            Passage(text="\n".join(map(str, turns)), title=date, id=f"{name}_{number}"),
            evidence and any(turn.has_answer for turn in turns),
        )
        for number, turns in enumerate(rounds.values(), start=1)
    ]


class _Line(_Record):
    speaker: str
    dia_id: str
    text: str
    blip_caption: str | None = None

    def __str__(self) -> str:
        shared = f" [shares {self.blip_caption}]" if self.blip_caption else ""
        return f"{self.speaker}: {self.text}{shared}"


class _LoCoMo(_Record):
    sample_id: Identifier
    conversation: dict[str, Any]
    qa: list[Any]


class _Question(_Record):
    question: str
    answer: str | int | float | None = None
    adversarial_answer: str | int | float | None = None
    evidence: list[str] = []
    category: int


class _Session(_Record):
    date: str | None
    lines: list[_Line]


def read_locomo(path: Path, unit: Literal["turn", "session"] = "turn") -> ParsedExamples:
    """LoCoMo, one example for each question; the questions of a conversation share its documents.

    Relevant are the turns (or their sessions) that `evidence` names; a question without evidence has none. The metadata
    has the conversation's id, the question's category (1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5
    adversarial) and the adversarial answer of category 5.

    Args:
        path: the file.
        unit: turns (id `D3:11`: session 3, turn 11) or sessions (id `D3`).
    """

    def examples(record: _LoCoMo, index: int) -> Iterator[LabelledExample | ValueError]:
        documents = tuple(_documents(record.conversation, unit))
        if not documents:
            raise ValueError(f"conversation {record.sample_id} has no session_<number> with turns in it")
        index_of = {document.id: index for index, document in enumerate(documents)}
        for number, raw in enumerate(record.qa):
            try:
                question = _Question.model_validate(raw)
                yield LabelledExample(
                    id=f"{record.sample_id}:{number}",
                    query=question.question,
                    answer=None if question.answer is None else str(question.answer),
                    documents=documents,
                    relevant=tuple(
                        sorted({index_of[name] for name in _evidence_ids(question.evidence, unit, index_of)})
                    ),
                    metadata={
                        "conversation": record.sample_id,
                        "category": question.category,
                        "adversarial_answer": question.adversarial_answer,
                    },
                )
            except ValueError as error:
                yield ValueError(f"conversation {record.sample_id}, qa {number}: {summarize_error(error)}")

    return parse_records(path, json_records(path), _LoCoMo, examples)


def _documents(conversation: dict[str, Any], unit: Literal["turn", "session"]) -> Iterator[Passage]:
    numbers = sorted(int(key[8:]) for key in conversation if re.fullmatch(r"session_(0|[1-9][0-9]*)", key))
    for number in numbers:
        session = _Session(
            date=conversation.get(f"session_{number}_date_time"), lines=conversation[f"session_{number}"]
        )
        if unit == "turn":
            yield from (Passage(text=str(line), title=session.date, id=line.dia_id) for line in session.lines)
        elif session.lines:
            yield Passage(text="\n".join(map(str, session.lines)), title=session.date, id=f"D{number}")


def _evidence_ids(
    evidence: list[str], unit: Literal["turn", "session"], index_of: Mapping[str | None, int]
) -> Iterator[str]:
    # the published file sometimes has several turns in one string ("D8:6; D9:17"), and D30:05 for D30:5
    for name in (part for entry in evidence for part in re.split(r"[;,\s]+", entry) if part):
        turn = re.fullmatch(r"D(\d+):(\d+)", name)
        if turn is None:
            raise ValueError(f"evidence {name!r} is not of the form D<session>:<turn>")
        document_id = f"D{int(turn[1])}" if unit == "session" else f"D{int(turn[1])}:{int(turn[2])}"
        if document_id not in index_of:
            raise ValueError(f"evidence {name!r} names no {unit} of this conversation")
        yield document_id
