"""Which documents of a ranking are kept: the best few, a share of the evidence, a token budget. Pure arithmetic.

Options intersect, and the best document is always kept. Before that, the order of the heads may be fused with that of
the first stage.
"""

import math
from collections.abc import Sequence
from operator import index as whole_number
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, field_validator

Order: TypeAlias = Literal["rank", "original"]
Fallback: TypeAlias = Literal["empty", "first_stage"]


class Selection(BaseModel):
    """What to keep of a ranking.

    Attributes:
        top_n: at most this many documents; None keeps all.
        min_share: a document's positive score over the sum of the list's positive scores must reach this share. Unlike
            a raw score, a share means the same in every list of like length.
        max_tokens: tokens that the kept documents may have together. Whole documents are taken best first; a document
            that does not fit is skipped, and smaller ones after it may still be taken.
        order: "rank" (best first) or "original" (as the caller had them).
        fuse_retrieval: weight of the first stage's order beside the heads' (`fuse_ranks`); 1 counts both alike, None
            ranks by the heads alone.
        min_evidence: a list of less evidence (`Ranking.evidence`) is refused; None refuses none.
        fallback: what a refused list gives: "empty" nothing, "first_stage" the documents in the first stage's order,
            cut to `top_n` and `max_tokens`.

    Raises:
        ValueError: an option out of range or of the wrong type; the message names it.

    >>> select([0.2, 0.9, 0.4], Selection(top_n=2))
    [1, 2]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_n: int | None = None
    min_share: float | None = None
    max_tokens: int | None = None
    order: Order = "rank"
    fuse_retrieval: float | None = None
    min_evidence: float | None = None
    fallback: Fallback = "empty"

    @field_validator("top_n", "max_tokens", mode="before")
    @classmethod
    def _check_count(cls, count: Any, info: Any) -> int | None:
        if count is None:
            return None
        if isinstance(count, bool) or not hasattr(count, "__index__"):
            raise ValueError(f"{info.field_name}={count!r} is not a whole number; expected 1 or more, or None")
        if whole_number(count) < 1:
            raise ValueError(f"{info.field_name}={count} keeps nothing; expected 1 or more, or None to keep all")
        return whole_number(count)

    @field_validator("min_share", "min_evidence", mode="before")
    @classmethod
    def _check_share(cls, share: Any, info: Any) -> float | None:
        if share is None:
            return None
        if isinstance(share, bool | str) or not hasattr(share, "__float__") or not 0 <= float(share) <= 1:
            raise ValueError(f"{info.field_name}={share!r} is not a share; expected a number from 0 to 1, or None")
        return float(share)

    @field_validator("fuse_retrieval", mode="before")
    @classmethod
    def _check_weight(cls, weight: Any) -> float | None:
        if weight is None:
            return None
        number = not isinstance(weight, bool | str) and hasattr(weight, "__float__")
        if not number or not 0 < float(weight) < math.inf:
            raise ValueError(f"fuse_retrieval={weight!r} is not a weight; expected a number above 0, or None")
        return float(weight)

    def refuses(self, evidence: float | None) -> bool:
        """Whether a list has less evidence than `min_evidence` asks for.

        Raises:
            ValueError: the list has no evidence to compare.

        >>> Selection(min_evidence=0.1).refuses(0.05)
        True
        """
        if self.min_evidence is None:
            return False
        if evidence is None:
            raise ValueError(
                f"min_evidence={self.min_evidence}, but the readout 'published' gives no evidence of a list; expected "
                "None, or the readout 'evidence' (readout=) with heads that were found in it"
            )
        return evidence < self.min_evidence

    def check_retrieval(self, retrieval_scores: Sequence[float] | None, num_documents: int) -> None:
        """Refuse scores of the first stage that do not belong to a list, or that nothing asks for.

        Raises:
            ValueError: names what was found and what was expected.
        """
        if retrieval_scores is None:
            return
        if self.fuse_retrieval is None:
            raise ValueError("retrieval_scores are given, but fuse_retrieval is None; expected a weight, 1 say")
        if len(retrieval_scores) != num_documents:
            raise ValueError(
                f"{len(retrieval_scores)} retrieval_scores for {num_documents} documents; expected one for each, or "
                "None where the documents stand in the first stage's order"
            )
        for index, score in enumerate(retrieval_scores):
            if isinstance(score, bool | str) or not hasattr(score, "__float__") or not math.isfinite(score):
                raise ValueError(f"retrieval_scores[{index}] is {score!r}; expected a finite number")


FUSION_CONSTANT = 20
"""k of reciprocal rank fusion: how slowly the worth of a rank falls."""


def fuse_ranks(ranking: Sequence[int], retrieval_scores: Sequence[float] | None, weight: float) -> dict[int, float]:
    """Reciprocal rank fusion of the heads' order with the first stage's (Cormack et al., SIGIR 2009).

        f(d) = 1 / (k + rank by the heads) + weight / (k + rank by the first stage)      (ranks from 1)

    Args:
        ranking: indices of documents, best first by the heads.
        retrieval_scores: of every document of the list; None means that the list is in the first stage's order.
        weight: of the first stage.

    Returns:
        f of each index in `ranking`; ranks by the first stage count the documents of `ranking` alone.

    >>> fused = fuse_ranks([2, 0, 1], retrieval_scores=[0.5, 9.0, 3.0], weight=1.0)
    >>> max(fused, key=fused.get)  # first by the heads, second by the first stage
    2
    """
    scores = [-index for index in ranking] if retrieval_scores is None else [retrieval_scores[i] for i in ranking]
    by_index = sorted(zip(ranking, scores, strict=True))  # equal scores keep the caller's order
    first_stage = [index for index, _ in sorted(by_index, key=lambda pair: -pair[1])]
    fused = {index: 1 / (FUSION_CONSTANT + rank) for rank, index in enumerate(ranking, start=1)}
    for rank, index in enumerate(first_stage, start=1):
        fused[index] += weight / (FUSION_CONSTANT + rank)
    return fused


def rank_order(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; equal scores keep the caller's order.

    >>> rank_order([0.1, 0.5, 0.5])
    [1, 2, 0]
    """
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def shares(scores: Sequence[float]) -> list[float]:
    """Each document's share of the list's positive score mass; all 0 where no score is positive.

    >>> shares([3.0, -1.0, 1.0])
    [0.75, 0.0, 0.25]
    """
    total = sum(score for score in scores if score > 0)
    return [max(score, 0.0) / total if total > 0 else 0.0 for score in scores]


def select(
    scores: Sequence[float],
    selection: Selection,
    token_counts: Sequence[int] | None = None,
    ranking: Sequence[int] | None = None,
) -> list[int]:
    """Indices of the documents that are kept, in rank order or in the original order.

    Args:
        scores: of each document, in the caller's order.
        selection: what to keep.
        token_counts: tokens of each document, needed with `max_tokens`.
        ranking: indices best first, where the order is more than the order of scores; by default `rank_order(scores)`.

    Raises:
        ValueError: `max_tokens` without `token_counts`.

    >>> select([0.2, 0.9, 0.4], Selection(max_tokens=10), token_counts=[4, 7, 5])
    [1]
    >>> select([0.2, 0.9, 0.4], Selection(top_n=2, order="original"))
    [1, 2]
    """
    if not scores:
        return []
    ranking = rank_order(scores) if ranking is None else ranking
    kept = list(ranking if selection.top_n is None else ranking[: selection.top_n])
    if selection.min_share is not None:
        share = shares(scores)
        kept = [index for index in kept if share[index] >= selection.min_share]
    kept = kept or list(ranking[:1])
    if selection.max_tokens is not None:
        if token_counts is None:
            raise ValueError(f"max_tokens={selection.max_tokens} needs token_counts, found None; count each document")
        best = kept[0]
        fitting, tokens_left = [best], selection.max_tokens - token_counts[best]
        for index in kept:
            if index != best and token_counts[index] <= tokens_left:
                fitting.append(index)
                tokens_left -= token_counts[index]
        kept = fitting
    return sorted(kept) if selection.order == "original" else kept
