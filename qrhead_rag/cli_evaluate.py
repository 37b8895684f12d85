"""`qrhead evaluate`: rerankers compared on labelled examples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli_data import (
    CandidatesOption,
    ExamplesOption,
    FormatOption,
    OrderOption,
    PartOption,
    SeedOption,
    SkipBadOption,
    SplitOption,
    UnitOption,
    progress,
    read_data,
)
from qrhead_rag.cli_errors import one_line_errors
from qrhead_rag.heads import Mode

if TYPE_CHECKING:
    from qrhead_rag.evaluation import Evaluation
    from qrhead_rag.examples import LabelledExample
    from qrhead_rag.generation import Writer
    from qrhead_rag.methods import Method
    from qrhead_rag.metrics import Interval
    from qrhead_rag.retriever import QRRetriever


def evaluate(
    data: Annotated[Path, typer.Argument(help="Labelled examples: a file or folder.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Parted by commas: random, bm25, embedding:FOLDER, all, default, the name of a shipped set, a .json "
            "head set, each of the last four perhaps with @independent or @late, or module:function."
        ),
    ] = "random,bm25,all,default",
    metrics: Annotated[str, typer.Option(help="As ir_measures names them, parted by commas.")] = "nDCG@10,R@2,R@5,RR",
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
    model: Annotated[
        str | None, typer.Option(help="Hub id or local folder; by default the embedded SmolLM2-135M-Instruct.")
    ] = None,
    format: FormatOption = None,
    unit: UnitOption = None,
    split: SplitOption = None,
    candidates: CandidatesOption = None,
    examples: ExamplesOption = None,
    part: PartOption = "1/1",
    order: OrderOption = "given",
    seed: SeedOption = 0,
    skip_bad: SkipBadOption = False,
    instruction: Annotated[str | None, typer.Option(help="Replaces the instruction before the query.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
) -> None:
    """Compare rerankers on labelled examples: measures with 95% intervals, and a paired test."""
    with one_line_errors():
        from qrhead_rag.evaluation import evaluate as run
        from qrhead_rag.methods import make_method

        names = [name.strip() for name in methods.split(",") if name.strip()]
        pair = [name.strip() for name in compare.split(",")] if compare else []
        if pair and (len(pair) != 2 or not set(pair) <= set(names)):
            raise ValueError(f"--compare {compare}: expected two of {', '.join(names)}, parted by a comma")
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
        load = _Loader(model, device, dtype, instruction)
        made = {name: make_method(name, load_retriever=load, seed=seed) for name in names}
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
            from qrhead_rag.generation import Writer

            whole = Writer.from_pretrained(writer or model, device=device)
            report["answering"] = _answer(found, made, whole, top_k, judge, console)
        if out:
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class _Loader:
    """Retrievers of one model, which is loaded once, whole, when the first is asked for."""

    def __init__(self, model: str | None, device: str | None, dtype: str | None, instruction: str | None) -> None:
        self._given = model, device, dtype
        self._instruction = instruction
        self._first: QRRetriever | None = None

    def __call__(self, heads: str | None, mode: Mode) -> "QRRetriever":
        from qrhead_rag.cli import load
        from qrhead_rag.heads import parse_heads
        from qrhead_rag.retriever import QRRetriever

        if self._first is None:
            model, device, dtype = self._given
            self._first = load(model, "all", "listwise", device, dtype, instruction=self._instruction)
        return QRRetriever(
            self._first.model,
            self._first.tokenizer,
            heads=parse_heads(heads),
            mode=mode,
            model_name=self._first.model_name,
            instruction=self._instruction,
        )


def _show(evaluation: "Evaluation", console: Console) -> None:
    summaries = evaluation.summaries()
    table = Table("method", *summaries[0].metrics, "s/query", box=None, pad_edge=False)
    for summary in summaries:
        table.add_row(summary.method, *map(_interval, summary.metrics.values()), f"{summary.seconds:.2f}")
    console.print(table)
    without = evaluation.num_without_relevant
    left_out = f"; {without} without a relevant document left out" if without else ""
    console.print(f"{evaluation.num_examples} examples, candidates {evaluation.order}{left_out}. 95% intervals.")


def _interval(found: "Interval") -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _answer(
    examples: "list[LabelledExample]",
    methods: "Mapping[str, Method]",
    writer: "Writer",
    top_k: int,
    judge: str | None,
    console: Console,
) -> dict[str, Any]:
    """Answers with each context, shown as a table; the summary and the single answers as data."""
    from qrhead_rag.longcontext import answer_with_contexts, summarize
    from qrhead_rag.methods import find_function

    mark = find_function(judge) if judge else None
    with progress("answering") as moved:
        answers = answer_with_contexts(examples, writer, methods, top_k=top_k, judge=mark, on_progress=moved)
    summary = summarize(answers)
    marks = list(dict.fromkeys(name for found in summary.values() for name in found))
    table = Table("context", *marks, box=None, pad_edge=False)
    for context, found in summary.items():
        table.add_row(context, *(_interval(found[name]) if name in found else "" for name in marks))
    console.print(table)
    cut = sum(answer.truncated for answer in answers)
    if cut:
        console.print(f"{cut} of {len(answers)} contexts were cut to fit the model.")
    return {
        "top_k": top_k,
        "contexts": {
            context: {name: interval._asdict() for name, interval in found.items()}
            for context, found in summary.items()
        },
        "answers": [answer.model_dump() for answer in answers],
    }
