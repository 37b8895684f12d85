"""A ranking's token contributions: which tokens of a passage earned it its score.

The contribution of a token is its calibrated score after the mask, summed over the heads; the contributions of a
document sum to its score. This file holds them as data; `cards.py` draws them on a page, `shading.py` on a terminal.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from qrhead_rag.core.passage import Passage
from qrhead_rag.files import write_text
from qrhead_rag.show.html import Card, Stretch, cards_html, page_html

Part: TypeAlias = Literal["label", "title", "text"]


@dataclass(frozen=True)
class Evidence:
    """What one document's tokens contributed, as the pass left it.

    Attributes:
        contributions: c(t) after the mask. # (tokens,)
        offsets: characters of each token, counted from the beginning of the label. # (tokens, 2)
        label: the label that the prompt puts before the document.
    """

    contributions: Tensor
    offsets: Tensor
    label: str


@dataclass(frozen=True)
class TokenContribution:
    """One token: its text, where it stands in the caller's own string, and what it contributed.

    Attributes:
        text: the characters of the token that lie in `part`.
        part: "text" or "title" of the passage, or the "label" that the prompt puts before it.
        start: first character, counted in `part`.
        end: the character after the last.
        contribution: query minus null query, after the mask.
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
        index: place in the list that was ranked.
        score: the sum of the contributions.
        passage: what the caller gave.
        tokens: none if the passage is blank and was not read.
        truncated: whether only its beginning was read.
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
        found: list[Stretch] = []
        reached = 0
        for token in tokens:
            if token.start > reached:
                found.append(Stretch(whole[reached : token.start], None))
            if token.start < reached:
                shared = found.pop()
                text, count = shared.text + whole[reached : token.end], shared.num_tokens + 1
                found.append(Stretch(text, (shared.contribution or 0.0) + token.contribution, count))
            else:
                found.append(Stretch(whole[token.start : token.end], token.contribution))
            reached = max(reached, token.end)
        if reached < len(whole):
            found.append(Stretch(whole[reached:], None))
        return tuple(found)


@dataclass(frozen=True, repr=False)
class Explanation:
    """Every kept passage of a ranking, in its order, token by token.

    A notebook shows it as cards; `to_html` is the same as a page of its own.
    """

    query: str
    passages: tuple[ExplainedPassage, ...]

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, place: int) -> ExplainedPassage:
        return self.passages[place]

    def __repr__(self) -> str:
        return f"<Explanation of {len(self)} passages for {self.query!r}>"

    def _repr_html_(self) -> str:
        return cards_html(self.query, self._cards())

    def to_html(self) -> str:
        """A page of its own: documents as cards in rank order, tokens shaded by what they contributed."""
        return page_html(self.query, self._cards())

    def save(self, path: str | Path) -> None:
        """Write the page of `to_html` to a file.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, self.to_html())

    def _cards(self) -> list[Card]:
        return [
            Card(
                index=explained.index,
                score=explained.score,
                id=explained.passage.id,
                label=explained.stretches("label"),
                title=explained.stretches("title"),
                text=explained.stretches("text") if explained.tokens else (),
                note=_note(explained),
            )
            for explained in self.passages
        ]


def _note(explained: ExplainedPassage) -> str:
    if not explained.tokens:
        return "blank, not read"
    return "only the beginning was read" if explained.truncated else ""


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
