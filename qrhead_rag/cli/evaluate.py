"""`qrhead evaluate`: rerankers compared on labelled examples."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    CandidatesOption,
    DeviceOption,
    DtypeOption,
    ExamplesOption,
    FormatOption,
    InstructionOption,
    ModelOption,
    OrderOption,
    PartOption,
    SeedOption,
    SkipBadOption,
    SplitOption,
    UnitOption,
    read_data,
)
from qrhead_rag.cli.output import one_line_errors, progress
from qrhead_rag.core.heads import EMBEDDED_MODEL, Mode, parse_heads
from qrhead_rag.files import write_text

if TYPE_CHECKING:
    from qrhead_rag.evaluate.answers import ContextAnswer
    from qrhead_rag.evaluate.evaluation import Evaluation
    from qrhead_rag.evaluate.metrics import Interval
    from qrhead_rag.evaluate.writer import Writer
    from qrhead_rag.ranking.retriever import QRRetriever


_CACHE_BYTES = 2**30  # of lists and passages that several queries share, for all methods together


def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled examples: a file or folder.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Parted by commas: random, bm25, embedding:FOLDER, all, default, the name of a shipped set, a .json "
            "head set, pairs like 17-3,18-6 (each of the last five perhaps with @independent or @late), or "
            "module:function of a query and texts that gives scores."
        ),
    ] = "random,bm25,all,default",
    metrics: Annotated[
        str, typer.Option(help="As ir_measures names them (R is recall, RR is MRR), parted by commas.")
    ] = "nDCG@10,R@2,R@5,RR",
    compare: Annotated[
        str | None, typer.Option(help="Two methods parted by a comma, for a paired test on the first metric.")
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
    model: ModelOption = None,
    format: FormatOption = None,
    unit: UnitOption = None,
    split: SplitOption = None,
    candidates: CandidatesOption = None,
    examples: ExamplesOption = None,
    part: PartOption = "1/1",
    order: OrderOption = "given",
    seed: SeedOption = 0,
    skip_bad: SkipBadOption = False,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Compare rerankers on labelled examples: measures with 95% intervals, and a paired test."""
    with one_line_errors():
        from qrhead_rag.cli.options import load_writer
        from qrhead_rag.evaluate.evaluation import evaluate as run
        from qrhead_rag.evaluate.methods import cached_method, import_function, make_method, parse_methods

        names = parse_methods(methods)
        pair = parse_methods(compare) if compare else []
        if pair and (len(pair) != 2 or not set(pair) <= set(names)):
            raise ValueError(f"--compare {compare}: expected two of {', '.join(names)}, parted by a comma")
        for file in (queries, out):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        sys.path.append(str(Path.cwd()))  # where the modules of module:function are looked for, as python -m does
        mark = import_function(judge) if judge else None
        found = read_data(
            data,
            format=format,
            unit=unit,
            split=split,
            candidates=candidates,
            skip_bad=skip_bad,
            examples=examples,
            part=part,
            seed=seed,
        )
        reading = {"instruction": instruction, "cache_bytes": _CACHE_BYTES // max(1, len(names))}
        models = _Models(model, device, dtype, reading, writes=answer and writer is None)
        made = {name: cached_method(make_method(name, load_retriever=models.retriever, seed=seed)) for name in names}
        measures = [name.strip() for name in metrics.split(",")]
        with progress("ranking") as moved:
            evaluation = run(found, made, metrics=measures, order=order, seed=seed, on_progress=moved)
        console = Console()
        _show(evaluation, console)
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

            whole = models.writer() if writer is None else load_writer(writer, device, dtype)
            with progress("answering") as moved:
                answers = answer_with_contexts(
                    found, whole, made, top_k=top_k, judge=mark, order=order, seed=seed, on_progress=moved
                )
            report["answering"] = {"top_k": top_k, **_show_answers(answers, len(found), console)}
        if out:
            write_text(out, json.dumps(report, indent=1) + "\n")


class _Models:
    """Retrievers of one model, and that model writing; it is loaded once, when the first is asked for."""

    def __init__(
        self, model: str | None, device: str | None, dtype: str | None, reading: dict[str, Any], *, writes: bool
    ) -> None:
        self._given = model, device, dtype
        self._name = model or EMBEDDED_MODEL
        self._reading = reading
        self._writes = writes
        self._loaded: QRRetriever | Writer | None = None

    def retriever(self, heads: str | None, mode: Mode | None) -> "QRRetriever":
        from qrhead_rag.cli.options import load
        from qrhead_rag.ranking.retriever import QRRetriever

        if self._loaded is None and not self._writes:
            model, device, dtype = self._given
            self._loaded = load(model, "all", "listwise", device, dtype)
        loaded = self._loaded or self.writer()
        return QRRetriever(
            loaded.model,
            loaded.tokenizer,
            heads=parse_heads(heads),
            mode=mode,
            model_name=self._name,
            **self._reading,
        )

    def writer(self) -> "Writer":
        from qrhead_rag.cli.options import load_writer

        if self._loaded is None:
            self._loaded = load_writer(*self._given)
        return cast("Writer", self._loaded)


def _show(evaluation: "Evaluation", console: Console) -> None:
    summaries = evaluation.summaries()
    table = _table("method", [*summaries[0].metrics, "s/query"])
    for summary in summaries:
        table.add_row(summary.method, *map(_interval, summary.metrics.values()), f"{summary.seconds:.2f}")
    console.print(table)
    without = evaluation.num_without_relevant
    left_out = f"; {without} without a relevant document left out" if without else ""
    console.print(f"{evaluation.num_examples} examples, candidates {evaluation.order}{left_out}. 95% intervals.")


def _table(first: str, others: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, overflow="fold", min_width=7 if name == "s/query" else 13)
    return table


def _interval(found: "Interval") -> str:
    return f"{found.mean:.3f} [{found.low:.3f},{found.high:.3f}]"  # breaks before the bracket on narrow terminals


def _show_answers(answers: "list[ContextAnswer]", num_examples: int, console: Console) -> dict[str, Any]:
    """Marks of each context as a table; the summary and the single answers as data."""
    from qrhead_rag.evaluate.answers import summarize

    summary = summarize(answers)
    marks = list(dict.fromkeys(name for found in summary.values() for name in found))
    table = _table("context", marks)
    for context, found in summary.items():
        table.add_row(context, *(_interval(found[name]) if name in found else "" for name in marks))
    console.print(table)
    if cut := Counter(answer.context for answer in answers if answer.truncated):
        counts = ", ".join(f"{count} of {context}" for context, count in cut.items())
        console.print(f"Contexts cut to fit the model: {counts}; what stands at their end was not read.")
    if left_out := num_examples - len({answer.id for answer in answers}):
        console.print(f"Questions left out that no context answers: {left_out}; a --judge marks them too.")
    return {
        "contexts": {
            context: {name: interval._asdict() for name, interval in found.items()}
            for context, found in summary.items()
        },
        "answers": [answer.model_dump() for answer in answers],
    }
