"""Whether the same heads would be found again: overlap of the top heads over disjoint halves and over resamples."""

import random
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from qrhead_rag.detect.crossvalidation import best_heads, group_weights


class Stability(BaseModel):
    """How firmly the top heads stand.

    Attributes:
        num_heads: how many top heads are compared.
        halves: share of the top heads that two disjoint halves of the examples have in common, mean over random splits;
            None with fewer than four examples.
        resamples: share of the top heads found on a bootstrap resample of the examples, mean over resamples.
        frequency: for each of the top heads, in their order, in what share of the resamples it is found again.
        chance: the share that two sets drawn blindly have in common.
    """

    model_config = ConfigDict(frozen=True)

    num_heads: int
    halves: float | None
    resamples: float
    frequency: tuple[float, ...]
    chance: float


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of the first that is in the second.

    >>> overlap([1, 2, 3, 4], [4, 5, 1])
    0.5
    """
    return len(set(first) & set(second)) / len(first)


def stability(
    values: Tensor,
    groups: Sequence[int],
    eligible: Tensor,
    num_heads: int,
    *,
    num_splits: int = 50,
    num_resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Compare the top heads over halves and resamples of the examples, drawn within each group (data set).

    Args:
        values: what each head is worth on each example. # (examples, heads)
        groups: the data set of each example.
        eligible: heads that may be chosen. # (heads,)
        num_heads: how many are compared.
        num_splits: random splits into halves.
        num_resamples: bootstrap resamples.
        seed: of the draws.
    """
    draw = random.Random(seed)
    members = [[place for place, one in enumerate(groups) if one == group] for group in sorted(set(groups))]

    def top(counts: Tensor) -> list[int]:
        return best_heads(values, counts * group_weights(groups), eligible)[:num_heads]

    chosen = top(torch.ones(len(groups)))
    halves = []
    for _ in range(num_splits if min(map(len, members)) >= 4 else 0):
        first = torch.zeros(len(groups))
        for group in members:
            first[draw.sample(group, len(group) // 2)] = 1
        halves.append(overlap(top(first), top(1 - first)))
    again = []
    for _ in range(num_resamples):
        drawn = [place for group in members for place in draw.choices(group, k=len(group))]
        again.append(top(torch.bincount(torch.tensor(drawn), minlength=len(groups)).float()))
    return Stability(
        num_heads=num_heads,
        halves=sum(halves) / len(halves) if halves else None,
        resamples=sum(overlap(chosen, found) for found in again) / len(again),
        frequency=tuple(sum(head in found for found in again) / len(again) for head in chosen),
        chance=num_heads / int(eligible.sum()),
    )
