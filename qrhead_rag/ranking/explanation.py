"""What each token of a ranking's passages contributed to their scores, as data.

The contributions of a document sum to its score. `show/html.py` draws them on a page, `show/terminal.py` on a terminal.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from qrhead_rag.core.passage import Passage
from qrhead_rag.core.reading import Evidence
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
        reason: why it is kept.

    >>> tokens = (TokenContribution("a", "text", 0, 1, 0.1), TokenContribution(" ship", "text", 1, 6, 0.3))
    >>> ExplainedPassage(0, 0.4, Passage(text="a ship"), tokens).top(1)[0].text
    ' ship'
    """

    index: int
    score: float
    passage: Passage
    tokens: tuple[TokenContribution, ...]
    truncated: bool = False
    reason: str = ""

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

    Attributes:
        query: the query.
        passages: in the order of the ranking.
        abstained: whether the list had less evidence than `min_evidence` asks for.

    >>> token = TokenContribution("a ship", "text", 0, 6, 0.4)
    >>> explanation = Explanation("what?", (ExplainedPassage(0, 0.4, Passage(text="a ship"), (token,)),))
    >>> explanation[0].tokens[0].text, "a ship" in explanation.to_html()
    ('a ship', True)
    """

    query: str
    passages: tuple[ExplainedPassage, ...]
    abstained: bool = False

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, index: int) -> ExplainedPassage:
        return self.passages[index]

    def __repr__(self) -> str:
        refused = ", less evidence than asked for" if self.abstained else ""
        return f"<Explanation of {len(self)} passages for {self.query!r}{refused}>"

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
