"""Passages trimmed to the sentences that carry their evidence. Pure arithmetic.

Scores are sums over tokens, so that what a ranking has read says what each sentence is worth; no model runs again.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index as whole_number
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from qrhead_rag.core.sentences import (
    LEANS_AT_MOST,
    OMISSION,
    Span,
    cut_text,
    join_spans,
    leaning_on,
    text_spans,
    trimmed_end,
    trimmed_start,
)

SIGN_TOKENS = 3
"""About what a sign of omission costs."""

_WORD = re.compile(r"\S+")


class Prune(BaseModel):
    """Which sentences to keep of the passages that are kept.

    Sentences are ordered by evidence per token (`sentence_weights`). One that begins with a pronoun or connective
    brings the one before it along.

    Attributes:
        min_share: a sentence's evidence per token must reach this share, above 0 and at most 1, of the mean of the
            whole list. The best sentence of each kept passage is always kept.
        max_tokens: tokens that title and pruned text of all kept passages may have together, omission signs included.
            The best sentences of all passages are taken first; one that does not fit is skipped, and shorter ones after
            it may still be taken. A passage of which nothing is taken leaves the ranking. Where not even the best
            sentence of all fits, its beginning is kept, as far as it fits, and nothing else.
        omission: stands where sentences were left out; at the beginning and the end without its outer white space.

    Raises:
        ValueError: neither a share nor a budget, or one out of range.

    >>> Prune(min_share=0.5).omission
    ' […] '
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_share: float | None = None
    max_tokens: int | None = None
    omission: str = OMISSION

    @classmethod
    def of(cls, prune: "Prune | float | None") -> "Prune | None":  # an int is a float to type checkers
        """The options that a caller means: a number with a fraction is a share, a whole number a budget of tokens.

        >>> Prune.of(0.5).min_share, Prune.of(200).max_tokens
        (0.5, 200)
        """
        if prune is None or isinstance(prune, Prune):
            return prune
        if isinstance(prune, bool):
            return cls(min_share=prune)  # which refuses it
        try:
            return cls(max_tokens=whole_number(prune))  # type: ignore[arg-type]
        except TypeError:  # a number with a fraction, also one of numpy or torch
            return cls(min_share=prune)

    @field_validator("min_share", mode="before")
    @classmethod
    def _check_share(cls, share: Any) -> float | None:
        if share is None:
            return None
        number = not isinstance(share, bool | str) and hasattr(share, "__float__")
        if not number or not 0 < float(share) <= 1:
            raise ValueError(f"min_share={share!r} prunes nothing sensible; expected a number above 0 and at most 1")
        return float(share)

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _check_budget(cls, tokens: Any) -> int | None:
        if tokens is None:
            return None
        if isinstance(tokens, bool) or not hasattr(tokens, "__index__") or whole_number(tokens) < 1:
            raise ValueError(f"max_tokens={tokens!r} is no budget of tokens; expected a whole number from 1")
        return whole_number(tokens)

    @model_validator(mode="after")
    def _check_either(self) -> Self:
        if self.min_share is None and self.max_tokens is None:
            raise ValueError("Prune() without a measure; expected min_share, max_tokens or both")
        return self


@dataclass(frozen=True)
class ReadText:
    """A passage's text with its evidence.

    Attributes:
        text: without the title, which is never cut.
        ends: the last character of each token of the text, in ascending order.
        contributions: what each of these tokens contributed.
        before: title and line break, which cost tokens.
    """

    text: str
    ends: tuple[int, ...]
    contributions: tuple[float, ...]
    before: str = ""

    @classmethod
    def of(cls, text: str, tokens: Iterable[tuple[int, float]], before: str = "") -> Self:
        """From (last character, contribution) of each token, in any order.

        >>> ReadText.of("A ship.", [(6, 0.1), (0, 0.5)]).ends
        (0, 6)
        """
        ordered = sorted(tokens)
        return cls(text, tuple(end for end, _ in ordered), tuple(share for _, share in ordered), before)

    def sums(self, spans: Sequence[Span], values: Sequence[float]) -> list[float]:
        """Sum of a value of each token over the tokens of each span; a token belongs to the span of its last character.

        >>> ReadText("A. B.", (1, 4), (0.5, 0.25)).sums([(0, 3), (3, 5)], (1, 2))
        [1.0, 2.0]
        """
        sums = [0.0] * len(spans)
        starts = [start for start, _ in spans]
        for end, value in zip(self.ends, values, strict=True):
            sums[max(0, bisect_right(starts, end) - 1)] += value
        return sums


def sentence_weights(texts: Sequence[ReadText], spans: Sequence[Sequence[Span]]) -> list[list[float]]:
    """What orders the sentences of a list: their evidence per token, over that of the whole list, which is 1.

    `SIGN_TOKENS` are added to the tokens of each sentence, about what it costs to leave out what stands around it.

    Args:
        texts: of the list.
        spans: sentences of each text.

    >>> text = ReadText("A. B.", (0, 1, 3, 4), (3.0, 0.0, 0.0, 1.0))
    >>> sentence_weights([text], [[(0, 3), (3, 5)]])
    [[1.5, 0.5]]
    """
    evidence = [text.sums(of_text, text.contributions) for text, of_text in zip(texts, spans, strict=True)]
    costs = [
        [tokens + SIGN_TOKENS for tokens in text.sums(of_text, [1.0] * len(text.ends))]
        for text, of_text in zip(texts, spans, strict=True)
    ]
    total = sum(share for of_text in evidence for share in of_text if share > 0)
    whole = sum(cost for of_text in costs for cost in of_text)
    return [
        [share * whole / (cost * (total or 1.0)) for share, cost in zip(*of_text, strict=True)]
        for of_text in zip(evidence, costs, strict=True)
    ]


def prune_texts(
    texts: Sequence[ReadText], kept: Sequence[int], prune: Prune, count_tokens: Callable[[str], int]
) -> dict[int, tuple[Span, ...]]:
    """Character ranges to keep of each kept passage; a passage of which nothing is kept is missing.

    Args:
        texts: of the whole list, which shares are counted in.
        kept: indices of the passages that are kept, best first.
        prune: what to keep of them.
        count_tokens: of a text, for `prune.max_tokens`.

    >>> text = ReadText("It rains. The ferry leaves at nine.", (1, 7, 16, 32), (0.0, 0.1, 0.2, 0.7))
    >>> prune_texts([text], [0], Prune(min_share=0.5), len)
    {0: ((10, 35),)}
    """
    spans = [text_spans(text.text) for text in texts]
    weights = sentence_weights(texts, spans)
    passages = {index: _Passage(texts[index], spans[index], weights[index], prune.omission) for index in kept}
    # The best of the list first; of equals, that of the better passage, then the earlier one.
    candidates = [(index, number) for index in kept for number in range(len(spans[index]))]
    candidates.sort(key=lambda candidate: -weights[candidate[0]][candidate[1]])
    if prune.min_share is not None:
        candidates = [
            (index, number)
            for index, number in candidates
            if weights[index][number] >= prune.min_share or number == passages[index].best
        ]
    for index, number in candidates:
        passages[index].chosen.update(passages[index].with_neighbours(number))
    if prune.max_tokens is not None and _total(passages.values(), count_tokens) > prune.max_tokens:
        _fit(passages, candidates, prune.max_tokens, count_tokens)
    return {index: passage.ranges for index, passage in passages.items() if passage.chosen}


@dataclass
class _Passage:
    """A passage while its sentences are chosen."""

    text: ReadText
    spans: Sequence[Span]
    weights: Sequence[float]
    omission: str
    chosen: set[int] = field(default_factory=set)
    cut: Span | None = None  # in place of sentences, where not even the best fits
    tokens: dict[int, int] = field(default_factory=dict)  # of each sentence that was counted
    sign: int | None = None  # tokens of the sign of omission

    @cached_property
    def best(self) -> int:
        """The sentence of the highest weight."""
        return max(range(len(self.spans)), key=lambda number: self.weights[number])

    @property
    def ranges(self) -> tuple[Span, ...]:
        """Character ranges of what is chosen."""
        if self.cut is not None:
            return (self.cut,) if self.cut[0] < self.cut[1] else ()
        return join_spans(self.text.text, self.spans, self.chosen)

    def with_neighbours(self, number: int) -> set[int]:
        """A sentence and those that it leans on, which are not yet chosen."""
        first = max(0, number - LEANS_AT_MOST)
        sentences = [self.text.text[start:end] for start, end in self.spans[first : number + 1]]
        return {first + index for index in leaning_on(sentences, number - first)} - self.chosen

    def cost(self, count_tokens: Callable[[str], int]) -> int:
        """Tokens of title and pruned text as they now are."""
        if not self.chosen:
            return 0
        return count_tokens(self.text.before + cut_text(self.text.text, self.ranges, self.omission))

    def cost_of(self, numbers: Iterable[int], count_tokens: Callable[[str], int]) -> int:
        """About what sentences add: their tokens, and signs of omission that come or go."""
        if self.sign is None:
            self.sign = count_tokens(self.omission)
        added: set[int] = set()
        cost = 0 if self.chosen else count_tokens(self.text.before) + self.sign
        for number in numbers:
            if number not in self.tokens:
                before = self.spans[number - 1] if number else (0, 0)
                start, end = (
                    trimmed_end(self.text.text, *before),
                    trimmed_end(self.text.text, *self.spans[number]),
                )
                self.tokens[number] = count_tokens(self.text.text[start:end])
            beside = [index for index in (number - 1, number + 1) if 0 <= index < len(self.spans)]
            missing = [index for index in beside if index not in self.chosen and index not in added]
            cost += self.tokens[number] + self.sign * (len(missing) - 1)
            added.add(number)
        return cost


def _total(passages: Iterable[_Passage], count_tokens: Callable[[str], int]) -> int:
    return sum(passage.cost(count_tokens) for passage in passages)


def _fit(
    passages: dict[int, _Passage],
    candidates: Sequence[tuple[int, int]],
    max_tokens: int,
    count_tokens: Callable[[str], int],
) -> None:
    """Choose within a budget, best first, by what sentences cost alone; then hold it by what the texts cost whole."""
    for passage in passages.values():
        passage.chosen.clear()
    taken: list[tuple[_Passage, set[int], int]] = []
    left = max_tokens
    for index, number in candidates:
        if left <= 0:
            break
        passage = passages[index]
        if number in passage.chosen:
            continue
        for added in (passage.with_neighbours(number), {number}):  # by itself where they do not fit
            cost = passage.cost_of(sorted(added), count_tokens)
            if cost <= left:
                passage.chosen |= added
                taken.append((passage, added, cost))
                left -= cost
                break
        if not taken:
            break
    # tokens do not simply add up where texts are joined: what was taken last goes first
    while taken and (over := _total(passages.values(), count_tokens) - max_tokens) > 0:
        while taken and over > 0:
            passage, added, cost = taken.pop()
            passage.chosen -= added
            over -= cost
    if not taken:
        index, number = candidates[0]
        passages[index].chosen = {number}
        _cut_sentence(passages[index], number, max_tokens, count_tokens)


def _cut_sentence(passage: _Passage, number: int, max_tokens: int, count_tokens: Callable[[str], int]) -> None:
    """Keep the beginning of a sentence: as many words as fit, else as many characters; perhaps none."""
    text = passage.text.text
    start = trimmed_start(text, *passage.spans[number])
    end = max(start, trimmed_end(text, *passage.spans[number]))
    words = [match.end() for match in _WORD.finditer(text, start, end)]
    for cuts in (words, range(start + 1, end)):
        low, high = 0, len(cuts)  # cuts[low - 1] fits
        while low < high:
            middle = (low + high) // 2
            passage.cut = start, cuts[middle]
            low, high = (middle + 1, high) if passage.cost(count_tokens) <= max_tokens else (low, middle)
        passage.cut = start, cuts[low - 1] if low else start
        if low:
            return
