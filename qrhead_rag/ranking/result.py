"""A ranking: the documents ordered by score, each with its index in the caller's list."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.ranking.explain import Evidence, Explanation, explain_passage
from qrhead_rag.show.html import Card, Stretch, cards_html


@dataclass(frozen=True)
class RankedPassage:
    """A passage with its place in the caller's list and its score.

    Attributes:
        index: place in the list that was ranked.
        score: s(d); compares within this ranking only.
        passage: what the caller gave.
        truncated: whether only its beginning was read.
    """

    index: int
    score: float
    passage: Passage
    truncated: bool = False


@dataclass(frozen=True)
class Ranking(Sequence[RankedPassage]):
    """The kept passages, best first unless the original order was asked for.

    Attributes:
        query: the query.
        passages: the kept passages.
        mode: how the documents were run through the model.
        windowed: whether the list was longer than the model's context and ranked in sliding windows. The scores are
            then those of each document's last window, and the order is that of the windows.
    """

    query: str
    passages: tuple[RankedPassage, ...]
    mode: Mode
    windowed: bool = False
    _evidence: tuple[Evidence | None, ...] = field(default=(), repr=False, compare=False)

    @property
    def truncated(self) -> tuple[int, ...]:
        """Indices (in the caller's list) of the kept documents of which only the beginning was read."""
        return tuple(ranked.index for ranked in self.passages if ranked.truncated)

    def explain(self) -> Explanation:
        """Per token of every kept passage, what it contributed to the score."""
        return Explanation(
            self.query,
            tuple(
                explain_passage(r.index, r.score, r.passage, self._evidence[r.index], r.truncated)
                for r in self.passages
            ),
        )

    def _repr_html_(self) -> str:
        """The ranking itself; `explain()` shows what decided."""
        cards = [
            Card(
                index=ranked.index,
                score=ranked.score,
                id=ranked.passage.id,
                title=(Stretch(ranked.passage.title),) if ranked.passage.title else (),
                text=(Stretch(_opening(ranked.passage.text)),),
                note="only the beginning was read" if ranked.truncated else "",
            )
            for ranked in self.passages
        ]
        return cards_html(self.query, cards, f"{self.mode}, in sliding windows" if self.windowed else self.mode)

    @overload
    def __getitem__(self, place: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, place: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[place]

    def __len__(self) -> int:
        return len(self.passages)

    def __iter__(self) -> Iterator[RankedPassage]:
        return iter(self.passages)


def _opening(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
