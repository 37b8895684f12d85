"""Long-context reasoning, as the QRHead paper measures it (arXiv 2506.09944, section 4): a model answers with the whole
context, with the documents that a method ranks highest, or with the relevant ones (`oracle`).

LongMemEval is scored by exact match and containment of the reference answer, and by a judge where one is given;
CLIPPER by true/false accuracy, over claims and over pairs of a true claim and its corrupted twin, where both must be
right. The documents stand in their own order, which is that of time or of chapters. Prompts are worded here, not
those of the papers.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from qrhead_rag.examples import LabelledExample
from qrhead_rag.generation import Writer
from qrhead_rag.methods import Method
from qrhead_rag.metrics import Interval, confidence_interval
from qrhead_rag.prompt import Passage

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
    query: str
    claim: bool | None


def answer_with_contexts(
    examples: Sequence[LabelledExample],
    writer: Writer,
    methods: Mapping[str, Method],
    *,
    top_k: int = 5,
    judge: Judge | None = None,
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
        on_progress: called with the answers done and the answers in all.

    Raises:
        ValueError: an example that has no reference answer, or top_k below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1 document")
    if missing := [example.id for example in examples if example.answer is None]:
        raise ValueError(f"examples {missing[:5]} have no reference answer, so that no answer can be scored")
    asked = [(example, one) for example in examples for one in _asked(example)]
    contexts = ["full", "oracle", *methods]
    answers: list[ContextAnswer] = []
    for example, one in asked:
        for context in contexts:
            if on_progress:
                on_progress(len(answers), len(asked) * len(contexts))
            if context == "full":
                chosen = list(range(len(example.documents)))
            elif context == "oracle":
                chosen = sorted(example.relevant)
            else:
                chosen = sorted(methods[context](one.query, example.documents).order[:top_k])
            answers.append(_answer(example, one, context, chosen, writer, judge))
    if on_progress:
        on_progress(len(answers), len(answers))
    return answers


def summarize(answers: Sequence[ContextAnswer]) -> dict[str, dict[str, Interval]]:
    """For each context, the mean of each mark; of claims also the share of `pairs` judged rightly, both of them."""
    found: dict[str, dict[str, Interval]] = {}
    for context in dict.fromkeys(answer.context for answer in answers):
        of_context = [answer for answer in answers if answer.context == context]
        marks = {
            name: confidence_interval([answer.marks[name] for answer in of_context]) for name in of_context[0].marks
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
        return [_Asked(example.query, None)]
    return [_Asked(example.query, True), _Asked(str(corrupted), False)]


def _answer(
    example: LabelledExample, asked: _Asked, context: str, chosen: list[int], writer: Writer, judge: Judge | None
) -> ContextAnswer:
    text = "\n\n".join(_shown(example.documents[index]) for index in chosen)
    if asked.claim is None:
        date = example.metadata.get("question_date")
        question = QUESTION.format(date=f" Today is {date}." if date else "", question=asked.query)
    else:
        question = CLAIM.format(claim=asked.query)
    written = writer.answer(text, question)
    if asked.claim is None:
        reference = str(example.answer)
        marks = {"exact": exact(reference, written.text), "contains": contains(reference, written.text)}
        if judge is not None:
            marks["judge"] = float(judge(asked.query, reference, written.text))
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
