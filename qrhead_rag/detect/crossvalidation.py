"""How well head sets rank examples that had no part in choosing them: quality against number of heads and depth.

A set's score of a document is taken as the sum of its heads' own scores, as they were recorded. In the score itself the
heads are summed before the token mask is applied (scoring.py), so these numbers are close to, not equal to, what a
retriever with that set reaches; `qrhead evaluate` measures that.
"""

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qrhead_rag.detect.recording import RecordedExample
from qrhead_rag.evaluate.metrics import ndcg_of_scores

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Numbers of heads that are tried."""


def assign_folds(groups: Sequence[int], num_folds: int, seed: int = 0) -> list[int]:
    """A fold for each example, drawn so that every group (data set) is spread evenly over the folds.

    >>> sorted(assign_folds([0, 0, 0, 1, 1, 1], 3))
    [0, 0, 1, 1, 2, 2]
    """
    draw = random.Random(seed)
    folds = [0] * len(groups)
    for group in sorted(set(groups)):
        members = [place for place, one in enumerate(groups) if one == group]
        draw.shuffle(members)
        for turn, place in enumerate(members):
            folds[place] = (turn + group) % num_folds
    return folds


def group_weights(groups: Sequence[int]) -> Tensor:
    """Weights by which every group counts alike, whatever its size; they sum to 1. # (examples,)

    >>> group_weights([0, 0, 0, 0, 1]).tolist()
    [0.125, 0.125, 0.125, 0.125, 0.5]
    """
    sizes = {group: groups.count(group) for group in set(groups)}
    return torch.tensor([1 / (sizes[group] * len(sizes)) for group in groups])


def best_heads(values: Tensor, weights: Tensor, eligible: Tensor) -> list[int]:
    """Eligible heads by their weighted mean value, best first; equal ones in the order of the model.

    Args:
        values: # (examples, heads)
        weights: 0 leaves an example out. # (examples,)
        eligible: boolean. # (heads,)
    """
    means = weights @ values / weights.sum()  # (heads,)
    order: list[int] = means.sort(descending=True, stable=True).indices.tolist()
    return [head for head in order if eligible[head]]


def set_quality(
    recorded: Iterable[RecordedExample], folds: Sequence[int], sets: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """nDCG@10 of head sets on every example.

    Args:
        recorded: the examples, read one at a time.
        folds: the fold of each.
        sets: for each fold, the head sets (rows of the recorded scores) to rank its examples by; as many in every fold.

    Returns:
        # (examples, sets)
    """
    found = []
    for (example, scores), fold in zip(recorded, folds, strict=True):
        sums = torch.stack([scores[list(heads)].sum(dim=0) for heads in sets[fold]])  # (sets, documents)
        found.append(ndcg_of_scores(sums, example))
    return torch.stack(found)


def smallest_as_good(quality: Tensor, weights: Tensor, sizes: Sequence[int]) -> int:
    """The smallest number of heads that is within one standard error of the best.

    The error is that of the paired difference to the best, over examples (the one-standard-error rule of Breiman et al.
    1984, on pairs): a larger set has to earn its heads.

    Args:
        quality: of each number of heads on each example. # (examples, sizes)
        weights: of each example. # (examples,)
        sizes: the numbers of heads, ascending.
    """
    weights = weights / weights.sum()
    best = int((weights @ quality).argmax())
    for place, size in enumerate(sizes):
        lost = quality[:, best] - quality[:, place]  # (examples,)
        mean = weights @ lost
        error = ((weights**2) @ (lost - mean) ** 2).sqrt()
        if mean <= error:
            return size
    return sizes[best]
