"""Methods compared on labelled examples: rankings, measures with confidence intervals, and a paired test.

Every method ranks the same lists in the same order. Examples without relevant documents are left out of the measures
and counted.
"""

import json
import time
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
        ranking: indices of the documents, best first.
        scores: of each document.
        seconds: taken to rank.
    """

    ranking: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: float


class QueryResult(BaseModel):
    """One query by one method.

    Attributes:
        id: of the example.
        method: name of the method.
        ranking: indices of the documents in the data set's order, best first.
        scores: of each document, in the data set's order; they compare within the list only.
        metrics: value of each measure.
        seconds: taken to rank.
    """

    model_config = ConfigDict(frozen=True)

    id: str | None
    method: str
    ranking: tuple[int, ...]
    scores: tuple[float, ...]
    metrics: dict[str, float]
    seconds: float


class MethodSummary(BaseModel):
    """One method over all queries: the mean of each measure with its 95% interval, and the mean seconds a query."""

    model_config = ConfigDict(frozen=True)

    method: str
    metrics: dict[str, Interval]
    seconds: float


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

    Args:
        examples: the labelled examples.
        methods: name and method.
        metrics: measures, as ir_measures names them.
        order: of the candidates in the list: "given" (as retrieved), "reversed" or "shuffled".
        seed: of the shuffle.
        on_progress: called with the number of rankings done and the total.

    Raises:
        ValueError: no example has a relevant document, no methods, or an unknown measure.
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
        values = measure([entry.ranking for entry in ranked], counted, metrics)
        results += [
            QueryResult(
                id=example.id,
                method=name,
                metrics={metric: values[metric][index] for metric in metrics},
                **entry._asdict(),
            )
            for index, (example, entry) in enumerate(zip(counted, ranked, strict=True))
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
    """Rank an example's documents in some order; the result is in the data set's order."""
    indices = document_order(example, order, seed)
    documents = [example.documents[index] for index in indices]
    start = time.perf_counter()
    ranked = method(example.query, documents)
    seconds = time.perf_counter() - start
    scores = dict(zip(indices, ranked.scores, strict=True))
    ranking = tuple(indices[rank] for rank in ranked.order)
    return RankedExample(ranking, tuple(scores[index] for index in range(len(scores))), seconds)
