"""Rankings to numbers: trec_eval's measures (through ir_measures and pytrec_eval), bootstrap and paired test of scipy.

Needs the extra `eval`; those libraries compute every measure.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.extras import require_extra

DEFAULT_METRICS = ("nDCG@10", "R@2", "R@5", "RR")


def measure(
    rankings: Sequence[Sequence[int]], examples: Sequence[LabelledExample], metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, list[float]]:
    """Every measure of every ranking.

    Args:
        rankings: for each example, indices of its documents, best first; documents left out count as not retrieved.
        examples: one labelled example for each ranking; an example may repeat.
        metrics: names as ir_measures writes them: nDCG@10, R@5 (recall), RR (reciprocal rank), AP, P@1 …

    Returns:
        For each measure, its value for each ranking. An example without relevant documents gets 0 by trec_eval's rules.

    Raises:
        ValueError: an unknown measure.
        ImportError: the extra `eval` is not installed.
    """
    parsed = parse_metrics(metrics)
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for index, (ranking, example) in enumerate(zip(rankings, examples, strict=True)):
        grades = {str(document): grade for document, grade in example.judgements.items()}
        grades |= {f"missed {number}": grade for number, grade in enumerate(example.missed)}
        # a judgement of 0 keeps an example without relevant documents in the result
        qrels[str(index)] = grades or {"none": 0}
        # trec_eval breaks ties by document name, so scores that fall by one give exactly this order
        run[str(index)] = {str(document): float(-rank) for rank, document in enumerate(ranking)}
    values = {name: [0.0] * len(rankings) for name in metrics}
    for metric in require_extra("ir_measures", "eval").iter_calc(list(set(parsed.values())), qrels, run):
        for name in (name for name, measure in parsed.items() if measure == metric.measure):
            values[name][int(metric.query_id)] = metric.value
    return values


def parse_metrics(metrics: Sequence[str]) -> dict[str, Any]:
    """The measure of ir_measures that each name stands for (`MRR` and `RR` are the same).

    Raises:
        ValueError: an unknown measure.
        ImportError: the extra `eval` is not installed.
    """
    ir_measures = require_extra("ir_measures", "eval")
    try:
        return {name: ir_measures.parse_measure(name) for name in metrics}
    except (ValueError, NameError) as error:
        raise ValueError(
            f"one of the measures {list(metrics)} is unknown ({error}); expected such as nDCG@10, R@5, RR"
        ) from error


def ndcg_of_scores(scores: Tensor, example: LabelledExample) -> Tensor:
    """nDCG@10 of every row of scores; equal scores keep the order of the documents.

    Args:
        scores: of several heads or head sets on one example. Shape: (rows, documents)
        example: the example.

    Returns:
        Shape: (rows,)
    """
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :10].tolist()  # (rows, 10)
    return torch.tensor(measure(best, [example] * len(best), ["nDCG@10"])["nDCG@10"])


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval.

    >>> confidence_interval([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5)
    """

    mean: float
    low: float
    high: float


def confidence_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean over queries, with a percentile bootstrap interval at 95% (9,999 resamples of the queries).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values; expected one for each query")
    mean = sum(values) / len(values)
    if len(set(values)) == 1:
        return Interval(mean, mean, mean)
    interval = (
        require_extra("scipy.stats", "eval")
        .bootstrap(
            (list(values),),
            _mean,
            n_resamples=9999,
            batch=max(1, 10**7 // len(values)),
            confidence_level=0.95,
            method="percentile",
            rng=seed,
        )
        .confidence_interval
    )
    return Interval(mean, float(interval.low), float(interval.high))


class Comparison(NamedTuple):
    """The mean difference between two methods on the same queries, and its p-value.

    >>> paired_test([0.5, 0.7], [0.5, 0.7])
    Comparison(difference=0.0, p_value=1.0)
    """

    difference: float
    p_value: float


def paired_test(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """Fisher's paired randomization test of the mean difference, two-sided (Smucker, Allan and Carterette 2007).

    Raises:
        ValueError: different numbers of values, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} values; expected as many of each, one for each query")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / len(differences)
    if not any(differences):
        return Comparison(0.0, 1.0)
    p_value = (
        require_extra("scipy.stats", "eval")
        .permutation_test(
            (differences,),
            _mean,
            permutation_type="samples",
            n_resamples=9999,
            batch=max(1, 10**7 // len(differences)),
            rng=seed,
        )
        .pvalue
    )
    return Comparison(mean, float(p_value))


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)
