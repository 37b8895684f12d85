"""Long-context reasoning, as the QRHead paper measures it (arXiv 2506.09944, section 4): a model answers with the whole
context, with the documents that a method ranks highest, or with the relevant ones (`oracle`).

LongMemEval is scored by exact match and containment of the reference answer, and by an optional judge. Its questions
that nothing in the history answers (`_abs`) are asked only with a judge: their reference answer is a refusal, which
every model words differently. CLIPPER is scored by true/false accuracy, over claims and over pairs of a
true claim and its corrupted twin, where both must be right. The documents keep their own order, by time or chapter.
The prompts are this project's, not those of the papers.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import Order
from qrhead_rag.evaluate.evaluation import rank_example, warn_failed
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

    >>> answer = ContextAnswer(
    ...     id="7", context="full", claim=None, documents=(0, 1), text="At nine.", truncated=False, marks={"exact": 1.0}
    ... )
    >>> summarize([answer])["full"]["exact"].mean
    1.0
    """

    model_config = ConfigDict(frozen=True)

    id: str | None
    context: str
    claim: bool | None
    documents: tuple[int, ...]
    text: str
    truncated: bool
    marks: dict[str, float]


class _Prompt(NamedTuple):
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

    A list that a method fails on is named in a warning; the model then answers without a document.

    Args:
        examples: of LongMemEval or CLIPPER; those with `corrupted_facts` in their metadata are claims, asked twice:
            true and corrupted. A method ranks for each version separately.
        writer: the model that answers.
        methods: name and method.
        top_k: documents of a method's ranking that go into the context.
        judge: marks the answers to questions.
        order: order of the candidates in the lists that the methods rank.
        seed: of the order "shuffled".
        on_progress: called with the number of answers done and the total.

    Raises:
        ValueError: an example without a reference answer, no example that can be marked, or top_k below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1 document")
    if missing := [example.id for example in examples if example.answer is None]:
        raise ValueError(f"examples {missing[:5]} have no reference answer to score by")
    markable = [example for example in examples if judge is not None or not _is_unanswerable(example)]
    if not markable:
        raise ValueError(f"none of the {len(examples)} examples can be marked without a judge")
    prompts = [prompt for example in markable for prompt in _prompts(example)]
    contexts = ["full", "oracle", *methods]
    answers: list[ContextAnswer] = []
    errors: dict[str, list[tuple[str | None, str | None]]] = {name: [] for name in methods}
    for prompt in prompts:
        for context in contexts:
            if on_progress:
                on_progress(len(answers), len(prompts) * len(contexts))
            chosen: Sequence[int]
            if context == "full":
                chosen = range(len(prompt.example.documents))
            elif context == "oracle":
                chosen = prompt.example.relevant
            else:
                ranked = rank_example(methods[context], prompt.example, order, seed)
                errors[context].append((prompt.example.id, ranked.error))
                chosen = ranked.ranking[:top_k]
            answers.append(_answer(prompt, context, sorted(chosen), writer, judge))
    for name, of_method in errors.items():
        warn_failed(name, of_method)
    if on_progress:
        on_progress(len(answers), len(answers))
    return answers


def summarize(answers: Sequence[ContextAnswer]) -> dict[str, dict[str, Interval]]:
    """For each context, the mean of each mark; of claims also the share of `pairs` with both right."""
    means: dict[str, dict[str, Interval]] = {}
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
        means[context] = marks
    return means


def exact(reference: str, answer: str) -> float:
    """Whether the answer is the reference, but for case, punctuation and articles (as in SQuAD).

    >>> exact("The Long Span", "the long span."), exact("Long Span", "a bridge")
    (1.0, 0.0)
    """
    return float(_plain(reference) == _plain(answer))


def contains(reference: str, answer: str) -> float:
    """Whether the answer contains the reference word for word, but for case, punctuation and articles.

    >>> contains("Nine", "Your cat is called Nine."), contains("nine", "nineteen")
    (1.0, 0.0)
    """
    return float(f" {_plain(reference)} " in f" {_plain(answer)} ")


def parse_verdict(answer: str) -> Literal["true", "false"] | None:
    """The first TRUE or FALSE in an answer; None where there is neither.

    >>> parse_verdict("FALSE, it is not true"), parse_verdict("perhaps")
    ('false', None)
    """
    match = re.search(r"\b(true|false)\b", answer, re.IGNORECASE)
    if match is None:
        return None
    return "true" if match[1].lower() == "true" else "false"


def _prompts(example: LabelledExample) -> list[_Prompt]:
    corrupted = example.metadata.get("corrupted_facts")
    if corrupted is None:
        return [_Prompt(example, None)]
    return [_Prompt(example, True), _Prompt(example.model_copy(update={"query": str(corrupted)}), False)]


def _is_unanswerable(example: LabelledExample) -> bool:
    """Whether the right answer is a refusal: the context has no answer."""
    return bool(example.metadata.get("abstention"))


def _answer(prompt: _Prompt, context: str, chosen: list[int], writer: Writer, judge: Judge | None) -> ContextAnswer:
    example = prompt.example
    text = "\n\n".join(_with_title(example.documents[index]) for index in chosen)
    if prompt.claim is None:
        date = example.metadata.get("question_date")
        question = QUESTION.format(date=f" Today is {date}." if date else "", question=example.query)
    else:
        question = CLAIM.format(claim=example.query)
    answer = writer.answer(text, question)
    if prompt.claim is None:
        reference = str(example.answer)
        marks = {}
        if not _is_unanswerable(example):
            marks = {"exact": exact(reference, answer.text), "contains": contains(reference, answer.text)}
        if judge is not None:
            marks["judge"] = float(judge(example.query, reference, answer.text))
    else:
        marks = {"correct": float(parse_verdict(answer.text) == ("true" if prompt.claim else "false"))}
    return ContextAnswer(
        id=example.id,
        context=context,
        claim=prompt.claim,
        documents=tuple(chosen),
        text=answer.text,
        truncated=answer.truncated,
        marks=marks,
    )


def _with_title(document: Passage) -> str:
    return f"[{document.title}]\n{document.text}" if document.title else document.text


def _plain(text: str) -> str:
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
