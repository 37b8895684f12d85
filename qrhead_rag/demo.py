"""The main job on real input: a research station's handbook, and questions whose words mislead word matching.

The order of BM25 stands beside the order of the heads, both over the whole handbook, with the tokens that earned the
winner its score: for the questions that gain most by the heads, and for the one that loses most. At the end both are
counted over all questions; nothing is left out.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qrhead_rag.core.passage import Passage, check_query
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.show.terminal import shaded, strongest

SHOWN_GAINS = 3
SHOWN_PLACES = 5


@dataclass(frozen=True)
class Question:
    """A question, and the ids of the passages that answer it."""

    query: str
    relevant: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Comparison:
    """Two orders of the same passages for one question, best first.

    Attributes:
        question: the question.
        bm25: BM25's order.
        ranking: the heads' order.
    """

    question: Question
    bm25: tuple[Passage, ...]
    ranking: Ranking

    @property
    def places(self) -> tuple[int, int]:
        """Where the first right passage stands with BM25 and with the heads, from 1."""
        ordered = tuple(ranked.passage for ranked in self.ranking)
        return _place(self.bm25, self.question), _place(ordered, self.question)


def _place(passages: Sequence[Passage], question: Question) -> int:
    return 1 + next(place for place, passage in enumerate(passages) if passage.id in question.relevant)


def load_handbook() -> tuple[list[Passage], list[Question]]:
    """The handbook's passages and the questions about them."""
    data = resources.files("qrhead_rag").joinpath("data")
    passages = data.joinpath("handbook.jsonl").read_text(encoding="utf-8").splitlines()
    questions = data.joinpath("handbook_questions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in questions]
    return (
        [Passage(**json.loads(line)) for line in passages],
        [Question(record["query"], frozenset(record["relevant"])) for record in records],
    )


def compare(retriever: QRRetriever, passages: Sequence[Passage], questions: Sequence[Question]) -> list[Comparison]:
    """Both orders of all passages for each question. The passages are run through the model once.

    Raises:
        ImportError: bm25s is not installed; the message has the command that installs it.
    """
    bm25 = BM25([passage.content for passage in passages])
    rankings = retriever.encode(passages).rank_queries([question.query for question in questions])
    return [
        Comparison(question, tuple(passages[place] for place in bm25.best(question.query, len(passages))), ranking)
        for question, ranking in zip(questions, rankings, strict=True)
    ]


def run(load: Callable[[], QRRetriever], console: Console, query: str | None = None) -> None:
    """Show the demo, or the answer to a question of one's own.

    Args:
        load: gives the retriever; called once the rest is known to be in order.
        console: where to.
        query: a question of one's own; None asks those that come with the handbook.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: a blank question.
    """
    passages, questions = load_handbook()
    if query is not None:
        questions = [Question(check_query(query))]
    require_extra("bm25s", "eval")  # before the wait for the model
    console.print(f"A handbook of {len(passages)} passages. Reading it once…", style="dim")
    retriever = load()
    comparisons = compare(retriever, passages, questions)
    for comparison in comparisons if query is not None else telling(comparisons):
        show(comparison, console)
    if query is None:
        console.rule(f"All {len(comparisons)} questions", align="left")
        console.print(summary(comparisons), markup=False)
    named = f"{len(retriever.heads.heads)} heads of {retriever.model_name}, {retriever.mode}"
    console.print(f"QRHead is {named}. Ask your own: qrhead demo --question '…'", style="dim", markup=False)


def telling(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The questions that gain most places by the heads, most first, and the one that loses most."""
    by_gain = sorted(comparisons, key=lambda found: found.places[1] - found.places[0])
    return [*by_gain[:SHOWN_GAINS], *by_gain[SHOWN_GAINS:][-1:]]


def show(comparison: Comparison, console: Console) -> None:
    """Both orders side by side, and what decided."""
    question = comparison.question
    console.rule()
    console.print(Text(question.query, style="bold"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("BM25")
    table.add_column("QRHead")
    ranked = [entry.passage for entry in comparison.ranking]
    for place, pair in enumerate(zip(comparison.bm25[:SHOWN_PLACES], ranked, strict=False), start=1):
        table.add_row(str(place), *(_title(passage, question) for passage in pair))
    console.print(table)
    if question.relevant:
        words, heads = comparison.places
        console.print(f"The right passage (✓) stands at place {words} with BM25, at place {heads} with QRHead.")
    console.print("What earned QRHead's first its score (blue for, orange against):", style="dim")
    winner = comparison.ranking.explain()[0]
    console.print(shaded(winner))
    console.print(strongest(winner), style="dim", markup=False, highlight=False)
    console.print()


def _title(passage: Passage, question: Question) -> Text:
    right = passage.id in question.relevant
    return Text(f"{passage.title}{' ✓' if right else ''}", style="bold green" if right else "")


def summary(comparisons: Sequence[Comparison]) -> str:
    """Over all questions: how often the right passage came first, among the first five, and where on average."""
    lines = []
    for name, places in zip(
        ("BM25", "QRHead"), zip(*(found.places for found in comparisons), strict=True), strict=True
    ):
        first, near = sum(place == 1 for place in places), sum(place <= SHOWN_PLACES for place in places)
        lines.append(
            f"{name:6} right passage first: {first} of {len(places)}; among the first {SHOWN_PLACES}: {near}; "
            f"average place: {sum(places) / len(places):.1f}"
        )
    return "\n".join(lines)
