"""When to say that nothing was found: the evidence of lists with a right passage beside that of lists without.

Labelled lists have a right passage. The same list without its relevant passages has none, and a ranking of it should be
refused. A floor (`min_evidence=` of `QRRetriever.rank`) does that; the two errors that it makes are measured here, and
a floor is recommended for a corpus, or none where the two kinds of lists cannot be told apart.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import Order, document_order
from qrhead_rag.evaluate.metrics import Interval
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.retriever import QRRetriever

LEAST_LISTS = 20
"""Lists of each kind below which no floor is recommended."""

LEAST_AUC = 0.7
"""Area under the ROC curve below which no floor is recommended."""

_FOLDS = 5


class EvidencePair(NamedTuple):
    """The evidence of one labelled list.

    Attributes:
        with_relevant: of the list as it is; None where it has no relevant passage.
        without_relevant: of the list without its relevant passages; None where nothing would be left.
    """

    with_relevant: float | None
    without_relevant: float | None


class Floor(NamedTuple):
    """A floor of evidence, and what it does.

    Attributes:
        floor: a list of less evidence is refused.
        kept: share of the lists with a relevant passage that are ranked; the rest is lost.
        passed_on: share of the lists without one that are ranked too; the rest is refused, as it should be.
    """

    floor: float
    kept: float
    passed_on: float


class Calibration(BaseModel):
    """A floor for a corpus, or why there is none.

    Attributes:
        floor: what `min_evidence` should be; None where no floor is recommended.
        reason: why there is none.
        auc: area under the ROC curve, with a bootstrap interval over the lists: how often a list with a relevant
            passage has more evidence than a list without. 0.5 is chance.
        kept: what the floor does to lists that had no part in choosing it, see `Floor`.
        passed_on: likewise.
        num_with: lists with a relevant passage.
        num_without: lists without one.
    """

    model_config = ConfigDict(frozen=True)

    floor: float | None
    reason: str | None
    auc: Interval | None
    kept: float | None
    passed_on: float | None
    num_with: int
    num_without: int


def measure_evidence(
    retriever: QRRetriever,
    examples: Sequence[LabelledExample],
    *,
    order: Order = "given",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[EvidencePair]:
    """The evidence of each labelled list, as it is and without its relevant passages.

    Args:
        retriever: reads the lists.
        examples: the labelled lists; one without a relevant passage is a list without.
        order: of the passages in the list.
        seed: of a shuffle.
        on_progress: called with the number of examples done and the total.

    Raises:
        ValueError: no examples, or a readout that gives no evidence.
    """
    if not examples:
        raise ValueError("no labelled examples to measure evidence on; expected at least 1")
    pairs = []
    for number, example in enumerate(examples):
        if on_progress:
            on_progress(number, len(examples))
        indices = document_order(example, order, seed)
        rest = [index for index in indices if index not in example.relevant]
        pairs.append(
            EvidencePair(
                _evidence(retriever, example, indices) if example.relevant else None,
                _evidence(retriever, example, rest) if rest else None,
            )
        )
    if on_progress:
        on_progress(len(examples), len(examples))
    return pairs


def _evidence(retriever: QRRetriever, example: LabelledExample, indices: Sequence[int]) -> float:
    evidence = retriever.rank(example.query, [example.documents[index] for index in indices]).evidence
    if evidence is None:
        raise ValueError(
            f"the readout {retriever.readout!r} gives no evidence of a list; expected 'evidence', with heads that were "
            "found in it (readout=, or @evidence after the name of a method)"
        )
    return evidence


def separation(pairs: Sequence[EvidencePair], seed: int = 0) -> Interval:
    """Area under the ROC curve, with a percentile bootstrap interval at 95% (9,999 resamples of the examples).

    Raises:
        ValueError: no list of one kind.
        ImportError: the extra `eval` is not installed.

    >>> separation([EvidencePair(0.3, 0.1), EvidencePair(0.3, 0.1)]).mean
    1.0
    """
    with_relevant, without = _of_pairs(pairs)
    if with_relevant.isnan().all() or without.isnan().all():
        raise ValueError("evidence of one kind of list only; expected lists with a relevant passage and lists without")
    # wins[i, j]: whether list i with a relevant passage has more evidence than list j without
    difference = with_relevant[:, None] - without
    wins = difference.sign().add(1).div(2).where(~difference.isnan(), torch.nan)

    def area(sample: object) -> float:
        index = torch.as_tensor(sample)
        return float(wins[index][:, index].nanmean())

    everything = area(range(len(pairs)))
    if len(pairs) < 2:
        return Interval(everything, everything, everything)
    bootstrap = require_extra("scipy.stats", "eval").bootstrap
    with warnings.catch_warnings():  # of few lists, some resamples have one kind only, and no area
        warnings.simplefilter("ignore")
        areas = bootstrap(
            (range(len(pairs)),), area, n_resamples=9999, vectorized=False, method="percentile", rng=seed
        ).bootstrap_distribution
    low, high = torch.as_tensor(areas).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(everything, low, high)


def floor_curve(pairs: Sequence[EvidencePair]) -> list[Floor]:
    """What every floor that makes a difference does, from the lowest.

    >>> floor_curve([EvidencePair(0.3, 0.1), EvidencePair(0.2, 0.2)])[1]
    Floor(floor=0.15000000000000002, kept=1.0, passed_on=0.5)
    """
    values = sorted({value for pair in pairs for value in pair if value is not None})
    # Halfway between two measured values, so that neither side depends on the last bit.
    floors = [0.0, *((low + high) / 2 for low, high in pairwise(values))]
    if values and values[-1] < 1:
        floors.append(1.0)  # refuses every list
    return [apply_floor(pairs, floor) for floor in floors]


def apply_floor(pairs: Sequence[EvidencePair], floor: float) -> Floor:
    """What a floor does to some lists; a share of none is 0."""
    with_relevant, without = ([value for value in values if value is not None] for values in zip(*pairs, strict=True))
    shares = (sum(value >= floor for value in values) / max(1, len(values)) for values in (with_relevant, without))
    return Floor(floor, *shares)


def choose_floor(pairs: Sequence[EvidencePair], max_wrong: float | None = None) -> Floor:
    """The best floor for some lists.

    Args:
        pairs: of the lists.
        max_wrong: the share of lists without a relevant passage that may be passed on: of the floors that keep to it,
            the one that keeps most. None weighs both errors alike (balanced accuracy).

    >>> pairs = [EvidencePair(0.5, 0.1), EvidencePair(0.4, 0.2), EvidencePair(0.15, 0.1)]
    >>> choose_floor(pairs).kept, choose_floor(pairs, max_wrong=0.0).kept
    (1.0, 0.6666666666666666)
    """
    curve = floor_curve(pairs)
    if max_wrong is None:
        return max(curve, key=lambda point: point.kept - point.passed_on)
    allowed = [point for point in curve if point.passed_on <= max_wrong] or curve[-1:]
    return max(allowed, key=lambda point: (point.kept, -point.passed_on))


def calibrate(pairs: Sequence[EvidencePair], max_wrong: float | None = None) -> Calibration:
    """A floor for a corpus from the evidence of its labelled lists, with its errors on lists that did not choose it.

    Args:
        pairs: of the lists, as `measure_evidence` gives them.
        max_wrong: as in `choose_floor`.

    Raises:
        ValueError: max_wrong is no share.
        ImportError: the extra `eval` is not installed.

    >>> calibrate([EvidencePair(0.5, 0.1)] * 4).reason
    '4 lists with a relevant passage and 4 without; expected at least 20 of each'
    """
    if max_wrong is not None and not 0 <= max_wrong < 1:
        raise ValueError(f"max_wrong={max_wrong} is no share of lists; expected a number from 0 to less than 1")
    counts = [sum(value is not None for value in values) for values in zip(*pairs, strict=True)] if pairs else [0, 0]
    area = separation(pairs) if min(counts) else None
    reason = None
    if min(counts) < LEAST_LISTS:
        kinds = f"{counts[0]} lists with a relevant passage and {counts[1]} without"
        reason = f"{kinds}; expected at least {LEAST_LISTS} of each"
    elif area is not None and area.mean < LEAST_AUC:
        reason = (
            f"lists with and without a relevant passage are not told apart: area under the ROC curve {area.mean:.2f}, "
            f"expected at least {LEAST_AUC}"
        )
    held_out = None if reason else _held_out(pairs, max_wrong)
    return Calibration(
        floor=choose_floor(pairs, max_wrong).floor if held_out else None,
        reason=reason,
        auc=area,
        kept=held_out.kept if held_out else None,
        passed_on=held_out.passed_on if held_out else None,
        num_with=counts[0],
        num_without=counts[1],
    )


def _held_out(pairs: Sequence[EvidencePair], max_wrong: float | None) -> Floor:
    """What the floors that the other folds choose do to each fold, and their mean."""
    folds = [pairs[number::_FOLDS] for number in range(_FOLDS)]
    floors = []
    decided: list[EvidencePair] = []  # 1 for a list that is ranked, 0 for one that is refused
    for number, fold in enumerate(folds):
        others = [pair for index, other in enumerate(folds) if index != number for pair in other]
        floors.append(choose_floor(others, max_wrong).floor)
        ranked = ([None if value is None else float(value >= floors[-1]) for value in pair] for pair in fold)
        decided += [EvidencePair(*of_list) for of_list in ranked]
    return apply_floor(decided, 0.5)._replace(floor=sum(floors) / len(floors))


def _of_pairs(pairs: Sequence[EvidencePair]) -> torch.Tensor:
    """Evidence with and without the relevant passages, NaN where there is no such list. Shape: (2, lists)"""
    nan = float("nan")
    return torch.tensor([[nan if value is None else value for value in pair] for pair in pairs]).T
