"""Long-context reasoning, as the QRHead paper measures it (arXiv 2506.09944, section 4): a model answers with the whole
context, with the documents that a method ranks highest, or with the relevant ones (`oracle`).

LongMemEval is scored by exact match and containment of the reference answer, and by a judge where one is given. Its
questions that nothing in the history answers (`_abs`) are asked only where there is a judge: the reference answer is
then a refusal, which no model words alike. CLIPPER is scored by true/false accuracy, over claims and over pairs of a
true claim and its corrupted twin, where both must be right. The documents stand in their own order, which is that of
time or of chapters. Prompts are worded here, not those of the papers.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import Order
from qrhead_rag.evaluate.evaluation import rank_as_given
from qrhead_rag.evaluate.methods import Method
from qrhead_rag.evaluate.metrics import Interval, confidence_interval
from qrhead_rag.evaluate.writer import Writer

Judge: TypeAlias = Callable[[str, str, str], float]
"""From question, reference answer and the model's answer to a mark between 0 and 1."""

QUESTION = (
    "These are excerpts of earlier conversations.{date} Answer the question from them, in as few words as possible."
    "\n\nQuestion: {question}"
)
CLAIM = (
    "Above stand chapters of a book. Is the following claim wholly true according to them? Answer with one word, "
    "TRUE or FALSE.\n\nClaim: {claim}"
)


class ContextAnswer(BaseModel):
    """One answer with one context.

    Attributes:
        id: of the example.
        context: "full", "oracle" or the name of a method.
        claim: for claims, whether it was the true one; None for questions.
        documents: indices of the documents in the context.
        text: what the model wrote.
        truncated: whether the context was cut to fit the model.
        marks: `exact`, `contains` and perhaps `judge` for questions, `correct` for claims.
    """

    model_config = ConfigDict(frozen=True)

    id: str | None
    context: str
    claim: bool | None
    documents: tuple[int, ...]
    text: str
    truncated: bool
    marks: dict[str, float]


class _Asked(NamedTuple):
    example: LabelledExample
    claim: bool | None


def answer_with_contexts(
    examples: Sequence[LabelledExample],
    writer: Writer,
    methods: Mapping[str, Method],
    *,
    top_k: int = 5,
    judge: Judge | None = None,
    order: Order = "given",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[ContextAnswer]:
    """Let a model answer every example with the full context, the oracle's, and the top k of each method.

    Args:
        examples: of LongMemEval or CLIPPER; those with `corrupted_facts` in their metadata are claims, asked twice:
            as it is, and corrupted. A method ranks for the claim that is asked.
        writer: the model that answers.
        methods: name and method.
        top_k: documents that a method may give.
        judge: marks the answers to questions.
        order: how the candidates stand in the lists that the methods rank.
        seed: of the order "shuffled".
        on_progress: called with the answers done and the answers in all.

    Raises:
        ValueError: an example that has no reference answer, none that can be marked, or top_k below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1 document")
    if missing := [example.id for example in examples if example.answer is None]:
        raise ValueError(f"examples {missing[:5]} have no reference answer, so that no answer can be scored")
    markable = [example for example in examples if judge is not None or not _is_refused(example)]
    if not markable:
        raise ValueError(f"{len(examples)} examples, none of them with an answer that can be marked without a judge")
    asked = [one for example in markable for one in _asked(example)]
    contexts = ["full", "oracle", *methods]
    answers: list[ContextAnswer] = []
    for one in asked:
        for context in contexts:
            if on_progress:
                on_progress(len(answers), len(asked) * len(contexts))
            chosen: Sequence[int]
            if context == "full":
                chosen = range(len(one.example.documents))
            elif context == "oracle":
                chosen = one.example.relevant
            else:
                chosen = rank_as_given(methods[context], one.example, order, seed).ranking[:top_k]
            answers.append(_answer(one, context, sorted(chosen), writer, judge))
    if on_progress:
        on_progress(len(answers), len(answers))
    return answers


def summarize(answers: Sequence[ContextAnswer]) -> dict[str, dict[str, Interval]]:
    """For each context, the mean of each mark; of claims also the share of `pairs` judged rightly, both of them."""
    found: dict[str, dict[str, Interval]] = {}
    for context in dict.fromkeys(answer.context for answer in answers):
        of_context = [answer for answer in answers if answer.context == context]
        names = dict.fromkeys(name for answer in of_context for name in answer.marks)
        marks = {
            name: confidence_interval([answer.marks[name] for answer in of_context if name in answer.marks])
            for name in names
        }
        true = {answer.id: answer.marks["correct"] for answer in of_context if answer.claim is True}
        false = {answer.id: answer.marks["correct"] for answer in of_context if answer.claim is False}
        if true:
            marks["true claims"] = confidence_interval(list(true.values()))
            marks["false claims"] = confidence_interval(list(false.values()))
            marks["pairs"] = confidence_interval([min(true[name], false[name]) for name in true])
        found[context] = marks
    return found


def exact(reference: str, answer: str) -> float:
    """Whether the answer is the reference, but for case, punctuation and articles (as in SQuAD).

    >>> exact("The Long Span", "the long span."), exact("Long Span", "a bridge")
    (1.0, 0.0)
    """
    return float(_plain(reference) == _plain(answer))


def contains(reference: str, answer: str) -> float:
    """Whether the reference stands in the answer, word for word, but for case, punctuation and articles.

    >>> contains("Nine", "Your cat is called Nine."), contains("nine", "nineteen")
    (1.0, 0.0)
    """
    return float(f" {_plain(reference)} " in f" {_plain(answer)} ")


def verdict(answer: str) -> Literal["true", "false"] | None:
    """The first TRUE or FALSE in an answer, None if there is neither.

    >>> verdict("FALSE, it is not true"), verdict("perhaps")
    ('false', None)
    """
    found = re.search(r"\b(true|false)\b", answer, re.IGNORECASE)
    if found is None:
        return None
    return "true" if found[1].lower() == "true" else "false"


def _asked(example: LabelledExample) -> list[_Asked]:
    corrupted = example.metadata.get("corrupted_facts")
    if corrupted is None:
        return [_Asked(example, None)]
    return [_Asked(example, True), _Asked(example.model_copy(update={"query": str(corrupted)}), False)]


def _is_refused(example: LabelledExample) -> bool:
    """Whether the right answer is that the context has none."""
    return bool(example.metadata.get("abstention"))


def _answer(asked: _Asked, context: str, chosen: list[int], writer: Writer, judge: Judge | None) -> ContextAnswer:
    example = asked.example
    text = "\n\n".join(_shown(example.documents[index]) for index in chosen)
    if asked.claim is None:
        date = example.metadata.get("question_date")
        question = QUESTION.format(date=f" Today is {date}." if date else "", question=example.query)
    else:
        question = CLAIM.format(claim=example.query)
    written = writer.answer(text, question)
    if asked.claim is None:
        reference = str(example.answer)
        marks = {}
        if not _is_refused(example):
            marks = {"exact": exact(reference, written.text), "contains": contains(reference, written.text)}
        if judge is not None:
            marks["judge"] = float(judge(example.query, reference, written.text))
    else:
        marks = {"correct": float(verdict(written.text) == ("true" if asked.claim else "false"))}
    return ContextAnswer(
        id=example.id,
        context=context,
        claim=asked.claim,
        documents=tuple(chosen),
        text=written.text,
        truncated=written.truncated,
        marks=marks,
    )


def _shown(document: Passage) -> str:
    return f"[{document.title}]\n{document.text}" if document.title else document.text


def _plain(text: str) -> str:
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
