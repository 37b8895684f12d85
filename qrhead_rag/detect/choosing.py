"""How to choose heads: the value of each head, the quality of head sets, and the stability of the choice.

    mass         calibrated attention on the relevant documents (QRHead, Zhang et al., arXiv 2506.09944, eq. 1)
    ndcg         nDCG@10 of the ranking by this head alone (the selection for the BEIR experiments of the same paper)
    contrastive  softmax over the documents at a temperature, its mass on the relevant ones (CoRe heads, Tran et al.,
                 arXiv 2510.02219); its published detector has one relevant document per list, here there may be several

`mass` prefers heads with much attention, `ndcg` and `contrastive` prefer selective heads.

Sets are evaluated on held-out examples. A set's score of a document is the sum of its heads' recorded scores. A
retriever sums the heads before it applies the token mask (core/scoring.py), so these numbers are close to its own, not
equal; `qrhead evaluate` measures those.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from qrhead_rag.detect.recording import RecordedExample
from qrhead_rag.evaluate.metrics import ndcg_of_scores

Criterion: TypeAlias = Literal["contrastive", "mass", "ndcg"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

TEMPERATURE = 0.01
"""The published CoRe heads used .001 (Mistral, Granite) and .1 (Llama, Phi)."""


def mass(scores: Tensor, relevant: Sequence[int]) -> Tensor:
    """Score on the relevant documents, summed. Shape: (heads, documents) -> (heads,)

    >>> mass(torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]]), [0, 2]).tolist()
    [5.0, 3.0]
    """
    return scores[:, list(relevant)].sum(dim=-1)


def contrastive(scores: Tensor, relevant: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """Mass on the relevant documents of a softmax over the list. Shape: (heads, documents) -> (heads,)

    >>> contrastive(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 9.0]]), [1, 3], temperature=0.1).tolist()
    [0.5, 1.0]
    """
    return torch.softmax(scores.double() / temperature, dim=-1)[:, list(relevant)].sum(dim=-1).float()


def head_values(recorded: RecordedExample, criterion: Criterion, temperature: float = TEMPERATURE) -> Tensor:
    """The value of every head on an example. Shape: (heads,)"""
    relevant = recorded.example.relevant
    by_name: dict[Criterion, Callable[[], Tensor]] = {
        "mass": lambda: mass(recorded.scores, relevant),
        "ndcg": lambda: ndcg_of_scores(recorded.scores, recorded.example),
        "contrastive": lambda: contrastive(recorded.scores, relevant, temperature),
    }
    return by_name[criterion]()


SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Numbers of heads that detection tries."""

NUM_SPLITS, NUM_RESAMPLES = 50, 200  # of the examples, into halves and by bootstrap


def assign_folds(groups: Sequence[int], num_folds: int, seed: int = 0) -> list[int]:
    """A fold for each example, drawn so that every group (data set) is spread evenly over the folds.

    >>> sorted(assign_folds([0, 0, 0, 1, 1, 1], 3))
    [0, 0, 1, 1, 2, 2]
    """
    draw = random.Random(seed)
    folds = [0] * len(groups)
    for group in sorted(set(groups)):
        members = _members(groups, group)
        draw.shuffle(members)
        for number, index in enumerate(members):
            folds[index] = (number + group) % num_folds
    return folds


def _members(groups: Sequence[int], group: int) -> list[int]:
    return [index for index, member_of in enumerate(groups) if member_of == group]


def group_weights(groups: Sequence[int]) -> Tensor:
    """Weights that give every group the same total; they sum to 1. Shape: (examples,)

    >>> group_weights([0, 0, 0, 0, 1]).tolist()
    [0.125, 0.125, 0.125, 0.125, 0.5]
    """
    sizes = {group: groups.count(group) for group in set(groups)}
    return torch.tensor([1 / (sizes[group] * len(sizes)) for group in groups])


def best_heads(values: Tensor, weights: Tensor, eligible: Tensor) -> list[int]:
    """Eligible heads by weighted mean value, best first; ties in the order of the model.

    Args:
        values: of each head on each example. Shape: (examples, heads)
        weights: 0 leaves an example out. Shape: (examples,)
        eligible: boolean. Shape: (heads,)
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
        sets: for each fold, the head sets (rows of the recorded scores) that rank its examples, as many in every fold.

    Returns:
        Shape: (examples, sets)
    """
    rows = []
    for (example, scores), fold in zip(recorded, folds, strict=True):
        sums = torch.stack([scores[list(heads)].sum(dim=0) for heads in sets[fold]])  # (sets, documents)
        rows.append(ndcg_of_scores(sums, example))
    return torch.stack(rows)


def smallest_as_good(quality: Tensor, weights: Tensor, sizes: Sequence[int]) -> int:
    """The smallest number of heads that is within one standard error of the best.

    The error is that of the paired difference to the best, over examples (the one-standard-error rule of Breiman et al.
    1984, on pairs): a larger set has to earn its heads.

    Args:
        quality: of each number of heads on each example. Shape: (examples, sizes)
        weights: of each example. Shape: (examples,)
        sizes: the numbers of heads, ascending.
    """
    weights = weights / weights.sum()
    best = int((weights @ quality).argmax())
    for index, size in enumerate(sizes):
        lost = quality[:, best] - quality[:, index]  # (examples,)
        mean = weights @ lost
        error = ((weights**2) @ (lost - mean) ** 2).sqrt()
        if mean <= error:
            return size
    return sizes[best]


class Stability(BaseModel):
    """How stable the choice of the top heads is.

    Attributes:
        num_heads: how many top heads are compared.
        halves: share of the top heads that two disjoint halves of the examples have in common, mean over random splits;
            None with fewer than four examples.
        resamples: share of the top heads chosen again on a bootstrap resample of the examples, mean over resamples.
        frequency: for each of the top heads, in their order, the share of resamples that choose it again.
        chance: share that two random sets have in common.

    >>> values = torch.tensor([[3.0, 1.0, 0.0]] * 4)  # (examples, heads)
    >>> stability(values, [0, 0, 0, 0], torch.tensor([True, True, True]), 1).halves
    1.0
    """

    model_config = ConfigDict(frozen=True)

    num_heads: int
    halves: float | None
    resamples: float
    frequency: tuple[float, ...]
    chance: float


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of the first heads that are among the second.

    >>> overlap([1, 2, 3, 4], [4, 5, 1])
    0.5
    """
    return len(set(first) & set(second)) / len(first)


def stability(values: Tensor, groups: Sequence[int], eligible: Tensor, num_heads: int, *, seed: int = 0) -> Stability:
    """Compare the top heads over halves and resamples of the examples, drawn within each group (data set).

    Args:
        values: of each head on each example. Shape: (examples, heads)
        groups: the data set of each example.
        eligible: heads that may be chosen. Shape: (heads,)
        num_heads: how many are compared.
        seed: of the draws.
    """
    draw = random.Random(seed)
    members = [_members(groups, group) for group in sorted(set(groups))]

    def top(counts: Tensor) -> list[int]:
        return best_heads(values, counts * group_weights(groups), eligible)[:num_heads]

    chosen = top(torch.ones(len(groups)))
    halves = []
    for _ in range(NUM_SPLITS if min(map(len, members)) >= 4 else 0):
        first = torch.zeros(len(groups))
        for group in members:
            first[draw.sample(group, len(group) // 2)] = 1
        halves.append(overlap(top(first), top(1 - first)))
    resampled = []
    for _ in range(NUM_RESAMPLES):
        drawn = [index for group in members for index in draw.choices(group, k=len(group))]
        resampled.append(top(torch.bincount(torch.tensor(drawn), minlength=len(groups)).float()))
    return Stability(
        num_heads=num_heads,
        halves=sum(halves) / len(halves) if halves else None,
        resamples=sum(overlap(chosen, heads) for heads in resampled) / len(resampled),
        frequency=tuple(sum(head in heads for heads in resampled) / len(resampled) for head in chosen),
        chance=num_heads / int(eligible.sum()),
    )
