"""A ranking: the documents ordered by score, each with its index in the caller's list, and what each token contributed.

The contribution of a token is its calibrated score after the mask, summed over the heads; the contributions of a
document sum to its score. This file holds them as data; `show/html.py` draws them on a page, `show/terminal.py` on a
terminal.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeAlias, overload

import torch
from torch import Tensor

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.scoring import Evidence
from qrhead_rag.core.selection import Selection, rank_order, select
from qrhead_rag.files import write_text


@dataclass(frozen=True)
class Stretch:
    """Characters that stand together, and what they contributed.

    Attributes:
        text: the characters; none where a token lies between two parts of a document.
        contribution: the sum of their tokens' contributions; None if they were not read.
        num_tokens: how many tokens share them: several where a character takes more than one.

    >>> Stretch(" ship", 0.3).halves
    (' ', 'ship')
    """

    text: str
    contribution: float | None = 0.0
    num_tokens: int = 1

    @property
    def halves(self) -> tuple[str, str]:
        """The space that most tokens begin with, and the rest: words stay apart if only the rest is shaded."""
        begins = 1 if self.text.startswith(" ") and self.text.strip() else 0
        return self.text[:begins], self.text[begins:]


Part: TypeAlias = Literal["label", "title", "text"]


@dataclass(frozen=True)
class TokenContribution:
    """One token: its text, where it stands in the caller's own string, and what it contributed.

    Attributes:
        text: the characters of the token that lie in `part`.
        part: "text" or "title" of the passage, or the "label" that the prompt puts before it.
        start: first character, counted in `part`.
        end: the character after the last.
        contribution: query minus null query, after the mask.

    >>> token = TokenContribution(" ships", "text", start=21, end=27, contribution=0.06)
    >>> "The keeper counts the ships."[token.start : token.end]
    ' ships'
    """

    text: str
    part: Part
    start: int
    end: int
    contribution: float


@dataclass(frozen=True)
class ExplainedPassage:
    """A ranked passage with the contributions of its tokens, in reading order.

    Attributes:
        index: in the list that was ranked.
        score: the sum of the contributions.
        passage: what the caller gave.
        tokens: none if the passage is blank and was not read.
        truncated: whether only its beginning was read.

    >>> tokens = (TokenContribution("a", "text", 0, 1, 0.1), TokenContribution(" ship", "text", 1, 6, 0.3))
    >>> ExplainedPassage(0, 0.4, Passage(text="a ship"), tokens).top(1)[0].text
    ' ship'
    """

    index: int
    score: float
    passage: Passage
    tokens: tuple[TokenContribution, ...]
    truncated: bool = False

    def top(self, number: int) -> list[TokenContribution]:
        """The tokens that contributed most, highest first."""
        return sorted(self.tokens, key=lambda token: -token.contribution)[:number]

    def stretches(self, part: Part) -> tuple[Stretch, ...]:
        """Title, text or label from end to end, cut where contributions change; what was not read has None.

        The stretches' texts join to the whole. Tokens that share a character make one stretch, and their
        contributions are summed.
        """
        tokens = [token for token in self.tokens if token.part == part]
        whole = {"title": self.passage.title or "", "text": self.passage.text}.get(part)
        if whole is None:  # every piece of a long document has the label before it
            of_label: dict[tuple[int, int], list[TokenContribution]] = {}
            for token in tokens:
                of_label.setdefault((token.start, token.end), []).append(token)
            return tuple(
                Stretch(same[0].text, sum(token.contribution for token in same), len(same))
                for same in of_label.values()
            )
        stretches: list[Stretch] = []
        reached = 0
        for token in tokens:
            if token.start > reached:
                stretches.append(Stretch(whole[reached : token.start], None))
            if token.start < reached:
                shared = stretches.pop()
                text, count = shared.text + whole[reached : token.end], shared.num_tokens + 1
                stretches.append(Stretch(text, (shared.contribution or 0.0) + token.contribution, count))
            else:
                stretches.append(Stretch(whole[token.start : token.end], token.contribution))
            reached = max(reached, token.end)
        if reached < len(whole):
            stretches.append(Stretch(whole[reached:], None))
        return tuple(stretches)


@dataclass(frozen=True, repr=False)
class Explanation:
    """Every kept passage of a ranking, in its order, token by token.

    A notebook shows it as cards; `to_html` is the same as a page of its own.

    >>> token = TokenContribution("a ship", "text", 0, 6, 0.4)
    >>> explanation = Explanation("what?", (ExplainedPassage(0, 0.4, Passage(text="a ship"), (token,)),))
    >>> explanation[0].tokens[0].text, "a ship" in explanation.to_html()
    ('a ship', True)
    """

    query: str
    passages: tuple[ExplainedPassage, ...]

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, index: int) -> ExplainedPassage:
        return self.passages[index]

    def __repr__(self) -> str:
        return f"<Explanation of {len(self)} passages for {self.query!r}>"

    def _repr_html_(self) -> str:
        from qrhead_rag.show.html import explanation_html

        return explanation_html(self)

    def to_html(self) -> str:
        """A page of its own: documents as cards in rank order, tokens shaded by what they contributed."""
        from qrhead_rag.show.html import explanation_page

        return explanation_page(self)

    def save(self, path: str | Path) -> None:
        """Write the page of `to_html` to a file.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, self.to_html())


def explain_passage(
    index: int, score: float, passage: Passage, evidence: Evidence | None, truncated: bool = False
) -> ExplainedPassage:
    """Place each contribution in the caller's title or text; a passage that was not read has no tokens."""
    if evidence is None:
        return ExplainedPassage(index, score, passage, (), truncated)
    label, title = evidence.label, passage.title or ""
    # Where each part begins, counted from the beginning of the label; title and text are joined by one newline.
    parts: list[tuple[Part, int, str]] = [("label", 0, label)]
    if title:
        parts.append(("title", len(label), title))
    parts.append(("text", len(label) + (len(title) + 1 if title else 0), passage.text))
    tokens = []
    for (start, end), contribution in zip(evidence.offsets.tolist(), evidence.contributions.tolist(), strict=True):
        # A token that lies across a joint belongs to the part of its last character.
        part, begin, whole = next(part for part in reversed(parts) if part[1] < end or part[0] == "label")
        first, last = max(start - begin, 0), min(end - begin, len(whole))
        tokens.append(TokenContribution(whole[first:last], part, first, last, contribution))
    return ExplainedPassage(index, score, passage, tuple(tokens), truncated)


def blank_lowest(scores: Tensor, passages: Sequence[Passage]) -> Tensor:
    """Scores in which a blank passage, which is not read, has the lowest of the list; 0 where all are blank.

    Shape: (..., passages)
    """
    blank = torch.tensor([passage.is_blank for passage in passages], dtype=torch.bool)
    if bool(blank.all()):
        return torch.zeros_like(scores)
    lowest = scores.masked_fill(blank, torch.inf).amin(dim=-1, keepdim=True)  # (..., 1)
    return scores.where(~blank, lowest)


@dataclass(frozen=True)
class RankedPassage:
    """A passage with its index in the caller's list and its score.

    Attributes:
        index: in the list that was ranked.
        score: s(d); compares within this ranking only.
        passage: what the caller gave.
        truncated: whether only its beginning was read.

    >>> RankedPassage(index=3, score=0.25, passage=Passage(text="The keeper counts the ships.")).passage.text
    'The keeper counts the ships.'
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

    >>> from qrhead_rag import QRRetriever
    >>> retriever = QRRetriever(model, tokenizer, heads=[(1, 0), (2, 3)], mode="late")
    >>> ranking = retriever.rank("Who counts the ships?", ["Bread is baked at dawn.", "The keeper counts the ships."])
    >>> sorted(ranked.index for ranked in ranking)
    [0, 1]
    >>> ranking[0].score >= ranking[1].score
    True
    """

    query: str
    passages: tuple[RankedPassage, ...]
    mode: Mode
    windowed: bool = False
    _evidence: tuple[Evidence | None, ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        query: str,
        passages: Sequence[Passage],
        scores: Tensor,
        evidence: Sequence[Evidence | None],
        selection: Selection,
        token_counts: Sequence[int] | None,
        mode: Mode,
        truncated: Collection[int],
        *,
        windowed: bool = False,
        order: Sequence[int] | None = None,
    ) -> Self:
        """What is kept of a list that was read, best first or in its own order. Blank passages stand last.

        Args:
            query: the query.
            passages: the whole list.
            scores: s(d) of each passage; those of blank ones do not matter. Shape: (passages,)
            evidence: what each passage's tokens contributed; None for one that was not read.
            selection: what is kept.
            token_counts: tokens of each passage, needed with `selection.max_tokens`.
            mode: how the documents were run through the model.
            truncated: indices of the passages that were read only in part.
            windowed: whether the list was ranked in windows.
            order: indices of the passages that are not blank, best first, where that is not the order of their scores.
        """
        values = blank_lowest(scores, passages).tolist()
        blank = [index for index, passage in enumerate(passages) if passage.is_blank]
        read = [index for index in (rank_order(values) if order is None else order) if not passages[index].is_blank]
        indices = select(values, selection, token_counts, [*read, *blank])
        ranked = (RankedPassage(index, values[index], passages[index], index in truncated) for index in indices)
        return cls(query, tuple(ranked), mode, windowed, tuple(evidence))

    @property
    def truncated(self) -> tuple[int, ...]:
        """Indices (in the caller's list) of the kept documents of which only the beginning was read."""
        return tuple(ranked.index for ranked in self.passages if ranked.truncated)

    def explain(self) -> Explanation:
        """Per token of every kept passage, what it contributed to the score.

        Raises:
            ValueError: the ranking was made by hand.
        """
        evidence = self._evidence
        if evidence is None:
            raise ValueError(
                "this ranking was made by hand and does not hold what each token contributed; expected one that "
                "QRRetriever.rank or EncodedPassages.rank gave: explain that one"
            )
        return Explanation(
            self.query,
            tuple(explain_passage(r.index, r.score, r.passage, evidence[r.index], r.truncated) for r in self.passages),
        )

    def _repr_html_(self) -> str:
        """The ranking itself; `explain()` shows what decided."""
        from qrhead_rag.show.html import ranking_html

        return ranking_html(self)

    @overload
    def __getitem__(self, index: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[index]

    def __len__(self) -> int:
        return len(self.passages)

    def __iter__(self) -> Iterator[RankedPassage]:
        return iter(self.passages)
