"""A ranking's token contributions: which tokens of a passage earned it its score.

The contribution of a token is its calibrated score after the mask, summed over the heads; the contributions of a
document sum to its score. This file holds them as data.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from qrhead_rag.prompt import Passage

Part: TypeAlias = Literal["label", "title", "text"]


@dataclass(frozen=True)
class Evidence:
    """What one document's tokens contributed, as the pass left it.

    Attributes:
        contributions: c(t) after the mask. # (tokens,)
        offsets: characters of each token, counted from the beginning of the label.
        label: the label that the prompt puts before the document.
    """

    contributions: Tensor
    offsets: list[tuple[int, int]]
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
    """A ranked passage with the contributions of its tokens, in reading order."""

    index: int
    score: float
    passage: Passage
    tokens: tuple[TokenContribution, ...]

    def top(self, number: int) -> list[TokenContribution]:
        """The tokens that contributed most, highest first."""
        return sorted(self.tokens, key=lambda token: -token.contribution)[:number]


@dataclass(frozen=True)
class Explanation:
    """Every kept passage of a ranking, in its order, token by token."""

    query: str
    passages: tuple[ExplainedPassage, ...]

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, place: int) -> ExplainedPassage:
        return self.passages[place]


def explain_passage(index: int, score: float, passage: Passage, evidence: Evidence | None) -> ExplainedPassage:
    """Place each contribution in the caller's title or text; a passage that was not read has no tokens."""
    if evidence is None:
        return ExplainedPassage(index, score, passage, ())
    label, title = evidence.label, passage.title or ""
    # Where each part begins, counted from the beginning of the label; title and text are joined by one newline.
    parts: list[tuple[Part, int, str]] = [("label", 0, label)]
    if title:
        parts.append(("title", len(label), title))
    parts.append(("text", len(label) + (len(title) + 1 if title else 0), passage.text))
    tokens = []
    for (start, end), contribution in zip(evidence.offsets, evidence.contributions.tolist(), strict=True):
        # A token that lies across a joint belongs to the part of its last character.
        part, begin, whole = next(part for part in reversed(parts) if part[1] < end or part[0] == "label")
        first, last = max(start - begin, 0), min(end - begin, len(whole))
        tokens.append(TokenContribution(whole[first:last], part, first, last, contribution))
    return ExplainedPassage(index, score, passage, tuple(tokens))
