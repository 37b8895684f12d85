"""The demo: a research station's handbook, and questions whose words mislead word matching.

It prints the order of BM25 beside the order of the heads, both over the whole handbook, with the tokens behind the top
score: for the questions that gain most by the heads, and for the question that loses most. A summary counts both over
all questions.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qrhead_rag.core.passage import Passage, check_query
from qrhead_rag.datasets.bm25 import BM25, unmatched_warning
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.show.terminal import shade_passage, strongest_tokens

TOP_GAINS = 3
TOP_RANKS = 5


@dataclass(frozen=True)
class Question:
    """A question, and the ids of the passages that answer it.

    >>> passages, questions = load_handbook()
    >>> questions[0].relevant <= {passage.id for passage in passages}
    True
    """

    query: str
    relevant: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Comparison:
    """Two orders of the same passages for one question, best first.

    Attributes:
        question: the question.
        bm25: BM25's order.
        ranking: the heads' order.

    >>> from qrhead_rag import RankedPassage
    >>> tea, ferry = Passage(text="Tea is at four.", id="tea"), Passage(text="The ferry leaves at nine.", id="ferry")
    >>> ranking = Ranking("When?", (RankedPassage(1, 0.7, ferry), RankedPassage(0, 0.1, tea)), "late")
    >>> Comparison(Question("When?", frozenset({"ferry"})), (tea, ferry), ranking).ranks
    (2, 1)
    """

    question: Question
    bm25: tuple[Passage, ...]
    ranking: Ranking

    @property
    def ranks(self) -> tuple[int, int]:
        """Rank of the first relevant passage with BM25 and with the heads, from 1."""
        ordered = tuple(ranked.passage for ranked in self.ranking)
        return _first_relevant(self.bm25, self.question), _first_relevant(ordered, self.question)


def _first_relevant(passages: Sequence[Passage], question: Question) -> int:
    return next(rank for rank, passage in enumerate(passages, start=1) if passage.id in question.relevant)


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
    if unmatched := [question.query for question in questions if not bm25.matches(question.query)]:
        warnings.warn(unmatched_warning(unmatched, len(questions)), stacklevel=2)
    rankings = retriever.encode(passages).rank_queries([question.query for question in questions])
    return [
        Comparison(question, tuple(passages[index] for index in bm25.best(question.query, len(passages))), ranking)
        for question, ranking in zip(questions, rankings, strict=True)
    ]


def run(load: Callable[[], QRRetriever], console: Console, query: str | None = None) -> None:
    """Print the demo, or the answer to the user's own question.

    Args:
        load: loads the retriever; called after all other checks.
        console: to print to.
        query: the user's own question; None asks the handbook's questions.

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
    for comparison in comparisons if query is not None else select_comparisons(comparisons):
        show(comparison, console)
    if query is None:
        console.rule(f"All {len(comparisons)} questions", align="left")
        console.print(summary(comparisons), markup=False)
    source = f"{len(retriever.heads.heads)} heads of {retriever.model_name}, {retriever.mode}"
    console.print(f"QRHead is {source}. Ask your own: qrhead demo --question '…'", style="dim", markup=False)


def select_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The questions that gain most ranks by the heads, and the question that loses most."""
    by_gain = sorted(comparisons, key=lambda comparison: comparison.ranks[1] - comparison.ranks[0])
    return [*by_gain[:TOP_GAINS], *by_gain[TOP_GAINS:][-1:]]


def show(comparison: Comparison, console: Console) -> None:
    """Print both orders side by side, and the tokens behind the top score."""
    question = comparison.question
    console.rule()
    console.print(Text(question.query, style="bold"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("BM25")
    table.add_column("QRHead")
    ranked = [entry.passage for entry in comparison.ranking]
    for rank, pair in enumerate(zip(comparison.bm25[:TOP_RANKS], ranked, strict=False), start=1):
        table.add_row(str(rank), *(_title(passage, question) for passage in pair))
    console.print(table)
    if question.relevant:
        words, heads = comparison.ranks
        console.print(f"The right passage (✓) stands at place {words} with BM25, at place {heads} with QRHead.")
    console.print("What earned QRHead's first its score (blue for, orange against):", style="dim")
    winner = comparison.ranking.explain()[0]
    console.print(shade_passage(winner))
    console.print(strongest_tokens(winner), style="dim", markup=False, highlight=False)
    console.print()


def _title(passage: Passage, question: Question) -> Text:
    right = passage.id in question.relevant
    return Text(f"{passage.title}{' ✓' if right else ''}", style="bold green" if right else "")


def summary(comparisons: Sequence[Comparison]) -> str:
    """Over all questions: how often the right passage came first, among the first five, and its mean rank."""
    lines = []
    by_method = zip(*(comparison.ranks for comparison in comparisons), strict=True)
    for name, ranks in zip(("BM25", "QRHead"), by_method, strict=True):
        first, near = sum(rank == 1 for rank in ranks), sum(rank <= TOP_RANKS for rank in ranks)
        lines.append(
            f"{name:6} right passage first: {first} of {len(ranks)}; among the first {TOP_RANKS}: {near}; "
            f"average place: {sum(ranks) / len(ranks):.1f}"
        )
    return "\n".join(lines)
