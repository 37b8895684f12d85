"""Methods compared on labelled examples: rankings, measures with confidence intervals, and a paired test.

Every method ranks the same lists in the same order. Examples without relevant documents are left out of the measures
and counted.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import Order, document_order
from qrhead_rag.evaluate.methods import Method
from qrhead_rag.evaluate.metrics import (
    DEFAULT_METRICS,
    Comparison,
    Interval,
    confidence_interval,
    measure,
    paired_test,
    parse_metrics,
)
from qrhead_rag.files import write_json_lines


class RankedExample(NamedTuple):
    """A method's ranking of one example, in the data set's order of the documents.

    Attributes:
        ranking: indices of the documents, best first; none where the method failed.
        scores: of each document; none where the method failed.
        seconds: taken to rank.
        unscored: whether every score is 0, of a fused method every score of its first stage.
        error: what the method raised, in words.
    """

    ranking: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: float
    unscored: bool = False
    error: str | None = None


class QueryResult(BaseModel):
    """One query by one method.

    Attributes:
        id: of the example.
        method: name of the method.
        ranking: indices of the documents in the data set's order, best first.
        scores: of each document, in the data set's order; they compare within the list only.
        metrics: value of each measure.
        seconds: taken to rank.
        error: why the method did not rank this list; it then has no ranking and no scores, and every measure is 0.
    """

    model_config = ConfigDict(frozen=True)

    id: str | None
    method: str
    ranking: tuple[int, ...]
    scores: tuple[float, ...]
    metrics: dict[str, float]
    seconds: float
    error: str | None = None


class MethodSummary(BaseModel):
    """One method over all queries: the mean of each measure with its 95% interval, the mean seconds a query, and the
    number of lists that it failed on, for which every measure is 0.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    metrics: dict[str, Interval]
    seconds: float
    num_failed: int = 0


class Evaluation(BaseModel):
    """Several methods on the same examples.

    Attributes:
        order: of the candidates: as given, reversed or shuffled.
        seed: of the shuffle.
        num_examples: examples that count.
        num_without_relevant: examples left out, without relevant documents.
        results: one for each query and method.

    >>> from qrhead_rag import Passage
    >>> from qrhead_rag.evaluate.methods import make_method
    >>> example = LabelledExample(query="when?", documents=(Passage(text="a"), Passage(text="b")), relevant=(1,))
    >>> evaluation = evaluate([example], {"random": make_method("random")}, metrics=["R@2"])
    >>> evaluation.values("random", "R@2")
    [1.0]
    """

    model_config = ConfigDict(frozen=True)

    order: Order
    seed: int
    num_examples: int
    num_without_relevant: int
    results: tuple[QueryResult, ...]

    def values(self, method: str, metric: str) -> list[float]:
        """The measure of each query, in the order of the examples.

        Raises:
            ValueError: no such method or measure.
        """
        results = [result for result in self.results if result.method == method]
        if not results or metric not in results[0].metrics:
            methods = list(dict.fromkeys(result.method for result in self.results))
            measures = list(self.results[0].metrics) if self.results else []
            raise ValueError(f"no {metric!r} of {method!r}; expected one of {measures} and one of {methods}")
        return [result.metrics[metric] for result in results]

    def summaries(self) -> list[MethodSummary]:
        """One summary for each method, in the order they ran."""
        by_method: dict[str, list[QueryResult]] = {}
        for result in self.results:
            by_method.setdefault(result.method, []).append(result)
        return [
            MethodSummary(
                method=method,
                metrics={metric: confidence_interval(self.values(method, metric)) for metric in results[0].metrics},
                seconds=sum(result.seconds for result in results) / len(results),
                num_failed=sum(result.error is not None for result in results),
            )
            for method, results in by_method.items()
        ]

    def compare(self, first: str, second: str, metric: str = "nDCG@10") -> Comparison:
        """The mean difference `first` - `second` on the same queries, with a paired randomization test.

        Raises:
            ValueError: no such method or measure.
        """
        return paired_test(self.values(first, metric), self.values(second, metric))

    def write_jsonl(self, path: str | Path) -> None:
        """Write one line for each query and method."""
        write_json_lines(path, (result.model_dump() for result in self.results))

    def to_json(self) -> str:
        """Settings and summaries; `write_jsonl` writes the single queries."""
        settings = self.model_dump(mode="json", exclude={"results"})
        summaries = [
            {
                "method": summary.method,
                "seconds": summary.seconds,
                "num_failed": summary.num_failed,
                "metrics": {name: interval._asdict() for name, interval in summary.metrics.items()},
            }
            for summary in self.summaries()
        ]
        return json.dumps(settings | {"methods": summaries}, indent=1)


def evaluate(
    examples: Sequence[LabelledExample],
    methods: Mapping[str, Method],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    order: Order = "given",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Rank every example by every method, and measure.

    A list that a method fails on is named in a warning and counts 0 for that method.

    Args:
        examples: the labelled examples.
        methods: name and method.
        metrics: measures, as ir_measures names them.
        order: of the candidates in the list: "given" (as retrieved), "reversed" or "shuffled".
        seed: of the shuffle.
        on_progress: called with the number of rankings done and the total.

    Raises:
        ValueError: no example has a relevant document, no methods, or an unknown measure.
        Exception: what a method raises that fails on every list.
        ImportError: the extra `eval` is not installed.
    """
    parse_metrics(metrics)  # before anything is ranked
    counted = [example for example in examples if example.relevant or example.missed]
    if not counted or not methods:
        raise ValueError(
            f"{len(counted)} of {len(examples)} examples with a relevant document, {len(methods)} methods; "
            "expected at least one of each"
        )
    results: list[QueryResult] = []
    for name, method in methods.items():
        ranked: list[RankedExample] = []
        for example in counted:
            if on_progress:
                on_progress(len(results) + len(ranked), len(counted) * len(methods))
            ranked.append(rank_example(method, example, order, seed))
        if all(entry.error for entry in ranked):
            _rank(method, counted[0], order, seed)  # raises it whole
        pairs = list(zip(counted, ranked, strict=True))
        warn_failed(name, [(example.id, entry.error) for example, entry in pairs])
        _warn_unscored(name, [example.id for example, entry in pairs if entry.unscored], len(pairs))
        values = measure([entry.ranking for entry in ranked], counted, metrics)
        results += [
            QueryResult(
                id=example.id,
                method=name,
                metrics={metric: values[metric][index] for metric in metrics},
                **{field: value for field, value in entry._asdict().items() if field != "unscored"},
            )
            for index, (example, entry) in enumerate(pairs)
        ]
    if on_progress:
        on_progress(len(results), len(results))
    return Evaluation(
        order=order,
        seed=seed,
        num_examples=len(counted),
        num_without_relevant=len(examples) - len(counted),
        results=tuple(results),
    )


def rank_example(method: Method, example: LabelledExample, order: Order, seed: int) -> RankedExample:
    """Rank an example's documents in some order; the result is in the data set's order.

    What the method raises is returned, so that one list does not end a run over many: see `warn_failed`.
    """
    start = time.perf_counter()
    try:
        return _rank(method, example, order, seed)
    except Exception as error:  # a method may raise anything, after hours; in words it keeps no tensors alive
        return RankedExample((), (), time.perf_counter() - start, error=f"{type(error).__name__}: {error}")


def _rank(method: Method, example: LabelledExample, order: Order, seed: int) -> RankedExample:
    indices = document_order(example, order, seed)
    documents = [example.documents[index] for index in indices]
    start = time.perf_counter()
    ranked = method(example.query, documents)
    seconds = time.perf_counter() - start
    scores = dict(zip(indices, ranked.scores, strict=True))
    ranking = tuple(indices[rank] for rank in ranked.order)
    return RankedExample(ranking, tuple(scores[index] for index in range(len(scores))), seconds, ranked.unscored)


def warn_failed(name: str, errors: Sequence[tuple[str | None, str | None]]) -> None:
    """Warn of the lists that a method failed on.

    Args:
        name: of the method.
        errors: the id of each example, and why it was not ranked, or None.
    """
    failed = [f"{example!r} ({error})" for example, error in errors if error]
    if failed:
        more = f", and {len(failed) - 5} more" if len(failed) > 5 else ""
        warnings.warn(
            f"{name} failed on {len(failed)} of {len(errors)} lists, which it ranks no document of: "
            f"{', '.join(failed[:5])}{more}",
            UserWarning,
            stacklevel=3,
        )


def _warn_unscored(name: str, unscored: Sequence[str | None], total: int) -> None:
    if unscored:
        warnings.warn(
            f"{name}: every first-stage score is 0 in {len(unscored)} of {total} lists (the first: {unscored[0]!r}), "
            "and puts no document before another",
            UserWarning,
            stacklevel=3,
        )
