"""`qrhead evaluate`: rerankers compared on labelled examples."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.calibrate import calibration_data, print_curve
from qrhead_rag.cli.options import DataOptions, InstructionOption, ModelOptions, OrderOption, expand_groups
from qrhead_rag.cli.output import one_line_errors, progress_bar
from qrhead_rag.core.heads import EMBEDDED_MODEL, Mode, Readout, parse_heads
from qrhead_rag.files import write_text

if TYPE_CHECKING:
    from qrhead_rag.datasets.examples import LabelledExample
    from qrhead_rag.datasets.load import Order
    from qrhead_rag.evaluate.answers import ContextAnswer
    from qrhead_rag.evaluate.evaluation import Evaluation
    from qrhead_rag.evaluate.metrics import Interval
    from qrhead_rag.evaluate.writer import Writer
    from qrhead_rag.ranking.retriever import QRRetriever


_CACHE_BYTES = 2**30  # of lists and passages that several queries share, for all methods together


@expand_groups
def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled examples: a file or folder.")],
    *,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: random, bm25, embedding:FOLDER, all, default, the name of a shipped set, a .json "
            "head set, pairs like 17-3,18-6 (each of the last five perhaps with @ and a mode, @ and a readout, and "
            "+bm25, +0.5*bm25 or +embedding:FOLDER, whose order is fused with theirs), or "
            "module:function of a query and texts that gives scores."
        ),
    ] = "random,bm25,all,default",
    metrics: Annotated[
        str, typer.Option(help="As ir_measures names them (R is recall, RR is MRR), comma-separated.")
    ] = "nDCG@10,R@2,R@5,RR",
    compare: Annotated[
        str | None, typer.Option(help="Two methods, comma-separated, for a paired test on the first metric.")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Where a line for each query and method is written.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the summary is written, as JSON.")] = None,
    answer: Annotated[
        bool,
        typer.Option("--answer", help="Also let a model answer: with the full context, the oracle's, each method's."),
    ] = False,
    writer: Annotated[
        str | None, typer.Option(help="The model that answers; by default the one whose heads are read.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Documents in a method's context (--answer).")] = 5,
    judge: Annotated[
        str | None, typer.Option(help="module:function of question, reference and answer that gives a mark (--answer).")
    ] = None,
    abstain: Annotated[
        bool,
        typer.Option(
            "--abstain",
            help="Also measure whether each method's evidence tells lists without their relevant documents.",
        ),
    ] = False,
    model: ModelOptions,
    labelled: DataOptions,
    order: OrderOption = "given",
    instruction: InstructionOption = None,
) -> None:
    """Compare rerankers on labelled examples: measures with 95% intervals, and a paired test."""
    with one_line_errors():
        from qrhead_rag.evaluate.evaluation import evaluate as run
        from qrhead_rag.evaluate.methods import import_function, make_methods, parse_methods

        names = parse_methods(methods)
        pair = parse_methods(compare) if compare else []
        if pair and (len(pair) != 2 or not set(pair) <= set(names)):
            raise ValueError(f"--compare {compare}: expected two of {', '.join(names)}, comma-separated")
        for file in (queries, out):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        sys.path.append(str(Path.cwd()))  # where the modules of module:function are looked for, as python -m does
        judge_answer = import_function(judge) if judge else None
        examples = labelled.load(data)
        reading = {"instruction": instruction, "cache_bytes": _CACHE_BYTES // max(1, len(names))}
        models = _Models(model, reading, writes=answer and writer is None)
        seed = labelled.seed
        rerankers = make_methods(names, load_retriever=models.retriever, seed=seed)
        measures = [name.strip() for name in metrics.split(",")]
        with progress_bar("ranking") as on_progress:
            evaluation = run(examples, rerankers, metrics=measures, order=order, seed=seed, on_progress=on_progress)
        console = Console()
        _print_evaluation(evaluation, console)
        if pair:
            difference = evaluation.compare(pair[0], pair[1], measures[0])
            console.print(
                f"{pair[0]} - {pair[1]}: {difference.difference:+.4f} {measures[0]}, p = {difference.p_value:.4f}"
            )
        if queries:
            evaluation.write_jsonl(queries)
        report: dict[str, Any] = {"data": data.name, **json.loads(evaluation.to_json())}
        if answer:
            from qrhead_rag.evaluate.answers import answer_with_contexts

            answering = models.writer() if writer is None else replace(model, model=writer).load_writer()
            with progress_bar("answering") as on_progress:
                answers = answer_with_contexts(
                    examples,
                    answering,
                    rerankers,
                    top_k=top_k,
                    judge=judge_answer,
                    order=order,
                    seed=seed,
                    on_progress=on_progress,
                )
            report["answering"] = {"top_k": top_k, **_print_answers(answers, len(examples), console)}
        if abstain:
            report["abstaining"] = _abstain(names, models, examples, order, seed, console)
        if out:
            write_text(out, json.dumps(report, indent=1) + "\n")


class _Models:
    """Retrievers of one model, and that model as a writer; it is loaded once, at the first use."""

    def __init__(self, options: ModelOptions, reading: dict[str, Any], *, writes: bool) -> None:
        self._options = options
        self._reading = reading
        self._writes = writes
        self._loaded: QRRetriever | Writer | None = None

    def retriever(self, heads: str | None, mode: Mode | None, readout: Readout | None) -> "QRRetriever":
        from qrhead_rag.ranking.retriever import QRRetriever

        if self._loaded is None and not self._writes:
            self._loaded = self._options.load("all", "listwise")
        loaded = self._loaded or self.writer()
        return QRRetriever(
            loaded.model,
            loaded.tokenizer,
            heads=parse_heads(heads),
            mode=mode,
            readout=readout,
            model_name=self._options.model or EMBEDDED_MODEL,
            **self._reading,
        )

    def writer(self) -> "Writer":
        if self._loaded is None:
            self._loaded = self._options.load_writer()
        return cast("Writer", self._loaded)


def _abstain(
    names: Sequence[str],
    models: _Models,
    examples: "Sequence[LabelledExample]",
    order: "Order",
    seed: int,
    console: Console,
) -> dict[str, Any]:
    """Print the curve of every method that has evidence; returns it as data."""
    from qrhead_rag.evaluate.abstain import calibrate, measure_evidence
    from qrhead_rag.evaluate.methods import reads_heads, retriever_of

    by_method = {}
    for name in filter(reads_heads, names):
        retriever = retriever_of(name, models.retriever)
        if retriever.readout != "evidence":
            continue
        with progress_bar("abstaining") as on_progress:
            pairs = measure_evidence(retriever, examples, order=order, seed=seed, on_progress=on_progress)
        calibration = calibrate(pairs)
        print_curve(name, pairs, calibration, console)
        by_method[name] = calibration_data(pairs, calibration)
    if not by_method:
        raise ValueError(
            f"--abstain: none of {', '.join(names)} has evidence; expected heads with the readout evidence, such as "
            "default@late@evidence"
        )
    return by_method


def _print_evaluation(evaluation: "Evaluation", console: Console) -> None:
    summaries = evaluation.summaries()
    table = _table("method", [*summaries[0].metrics, "s/query"])
    for summary in summaries:
        table.add_row(summary.method, *map(_interval, summary.metrics.values()), f"{summary.seconds:.2f}")
    console.print(table)
    without = evaluation.num_without_relevant
    left_out = f"; {without} without a relevant document left out" if without else ""
    console.print(f"{evaluation.num_examples} examples, candidates {evaluation.order}{left_out}. 95% intervals.")
    if failed := ", ".join(f"{summary.num_failed} of {summary.method}" for summary in summaries if summary.num_failed):
        console.print(f"Lists that were not ranked, and count 0: {failed}.", markup=False)


def _table(first: str, others: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, overflow="fold", min_width=7 if name == "s/query" else 13)
    return table


def _interval(interval: "Interval") -> str:
    return (
        f"{interval.mean:.3f} [{interval.low:.3f},{interval.high:.3f}]"  # breaks before the bracket on narrow terminals
    )


def _print_answers(answers: "list[ContextAnswer]", num_examples: int, console: Console) -> dict[str, Any]:
    """Print the marks of each context as a table; returns the summary and the single answers as data."""
    from qrhead_rag.evaluate.answers import summarize

    summary = summarize(answers)
    marks = list(dict.fromkeys(name for intervals in summary.values() for name in intervals))
    table = _table("context", marks)
    for context, intervals in summary.items():
        table.add_row(context, *(_interval(intervals[name]) if name in intervals else "" for name in marks))
    console.print(table)
    if cut := Counter(answer.context for answer in answers if answer.truncated):
        counts = ", ".join(f"{count} of {context}" for context, count in cut.items())
        console.print(f"Contexts cut to fit the model: {counts}; what stands at their end was not read.")
    if left_out := num_examples - len({answer.id for answer in answers}):
        console.print(f"Questions left out that no context answers: {left_out}; a --judge marks them too.")
    return {
        "contexts": {
            context: {name: interval._asdict() for name, interval in intervals.items()}
            for context, intervals in summary.items()
        },
        "answers": [answer.model_dump() for answer in answers],
    }
