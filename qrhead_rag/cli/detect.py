"""`qrhead detect`: labelled examples to a head set, with the report that says what it is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    DataOptions,
    InstructionOption,
    ModelOptions,
    ModeOption,
    OrderOption,
    PoolOptions,
    ReadoutOption,
    expand_groups,
)
from qrhead_rag.cli.output import one_line_errors, progress_bar, resumable
from qrhead_rag.core.heads import DEFAULT_READOUTS, EMBEDDED_MODEL, recommended_mode
from qrhead_rag.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qrhead_rag.datasets.examples import LabelledExample
    from qrhead_rag.datasets.load import Order
    from qrhead_rag.detect.recording import Recording
    from qrhead_rag.detect.report import Detection
    from qrhead_rag.evaluate.writer import Writer


@expand_groups
def detect(
    data: Annotated[
        list[Path] | None, typer.Argument(help="Labelled examples: files or folders; they count alike.")
    ] = None,
    *,
    from_passages: Annotated[
        Path | None,
        typer.Option(
            help="Passages without labels, from which questions are made: .txt (a passage a line), .jsonl, .parquet "
            "or a folder of text files."
        ),
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions to make from passages.")] = 40,
    out: Annotated[Path, typer.Option(help="Where the head set is written.")] = Path("heads.json"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report: detection.json and, with the extra plot, pictures.")
    ] = None,
    scores: Annotated[
        Path, typer.Option(help="Folder for the recorded scores; what it has already is not run again.")
    ] = Path("head-scores"),
    name: Annotated[str, typer.Option(help="Name of the head set.")] = "detected",
    model: ModelOptions,
    mode: ModeOption = None,
    readout: ReadoutOption = None,
    criterion: Annotated[
        Literal["contrastive", "mass", "ndcg"] | None,
        typer.Option(
            help="The worth of a head on an example: a softmax over the documents, its mass on the relevant ones "
            "(contrastive); attention on the relevant ones (mass); nDCG@10 of the ranking by this head alone (ndcg). "
            "By default contrastive, from passages ndcg."
        ),
    ] = None,
    num_heads: Annotated[
        str, typer.Option(help="How many heads, or auto: as few as rank held-out examples as well as the best number.")
    ] = "auto",
    max_layer: Annotated[
        int | None,
        typer.Option(
            help="Deepest layer a head may be in, from 0; rankings then run none above. By default the last, from "
            "passages two thirds of the way."
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the criterion contrastive.")] = None,
    copying: Annotated[
        bool, typer.Option("--copying", help="Also find the copying heads of Wu et al. and report the overlap.")
    ] = False,
    labelled: DataOptions,
    order: OrderOption = "shuffled",
    instruction: InstructionOption = None,
    ray: Annotated[bool, typer.Option("--ray", help="Record on several machines or processes; extra ray.")] = False,
    pool: PoolOptions,
) -> None:
    """Find the heads of a model that attend to what a query needs, on labelled examples or on plain passages."""
    with one_line_errors():
        from qrhead_rag.detect.choosing import TEMPERATURE
        from qrhead_rag.detect.detection import detect as choose_heads
        from qrhead_rag.detect.finding import check_worth, controls, detect_enough, layers_to_search
        from qrhead_rag.detect.recording import can_compare_heads, record
        from qrhead_rag.detect.report import DetectionOptions
        from qrhead_rag.evaluate.metrics import parse_metrics
        from qrhead_rag.ranking.retriever import QRRetriever

        if num_heads != "auto" and not num_heads.isdigit():
            raise ValueError(f"--num-heads {num_heads}: expected a number or auto")
        mode = mode or recommended_mode(model.model or EMBEDDED_MODEL)
        readout = readout or DEFAULT_READOUTS[mode]
        parse_metrics(["nDCG@10"])  # fails here, not after the recording, if the extra is missing
        options = DetectionOptions(
            criterion=criterion or ("contrastive" if from_passages is None else "ndcg"),
            num_heads="auto" if num_heads == "auto" else int(num_heads),
            max_layer=max_layer,
            temperature=TEMPERATURE if temperature is None else temperature,
            seed=labelled.seed,
        )
        examples = _load_examples(data or [], labelled, order, from_passages, questions)
        for file in filter(None, (out, scores, report)):
            file.parent.mkdir(parents=True, exist_ok=True)
        if pool != PoolOptions() and not ray:
            raise ValueError("--address, --concurrency, --gpus and --cpus say where --ray runs; give it too")
        where = pool.validated() if ray else None
        writer = model.load_writer(max_new_tokens=32) if copying else None
        recordings: dict[str, Recording] = {}
        if where is None:
            reading = {"readout": readout, "instruction": instruction}
            if writer is None:
                retriever = model.load("all", mode, **reading)
            else:  # one model in memory is read and writes
                name_of_model = model.model or EMBEDDED_MODEL
                retriever = QRRetriever(
                    writer.model, writer.tokenizer, heads="all", mode=mode, model_name=name_of_model, **reading
                )
            usable = sum(can_compare_heads(example) for listed in examples.values() for example in listed)
            options.check_possible(usable, retriever.shape)  # fails here, not after the recording
            for label, listed in examples.items():
                with progress_bar(f"recording {label}") as on_progress, resumable():
                    recordings[label] = record(retriever, listed, scores, on_progress)
            model_name, shape = retriever.model_name, retriever.shape
        else:
            from qrhead_rag.cluster.record import record_on_ray

            with progress_bar("recording") as on_progress, resumable():
                recordings, model_name, shape = record_on_ray(
                    examples,
                    scores,
                    pool=where,
                    on_progress=on_progress,
                    mode=mode,
                    readout=readout,
                    instruction=instruction,
                    **vars(model),
                )
        copied = None if writer is None else _copying(writer)
        if from_passages is not None:
            deepest = layers_to_search(shape, max_layer, shape.num_layers) - 1
            options = options.model_copy(update={"max_layer": deepest})
        choose = choose_heads if from_passages is None else detect_enough
        detection = choose(recordings, model_name, shape, mode, options, readout=readout, copying=copied)
        _write_report(detection, report)
        print_report(detection, Console())
        worth = None if from_passages is None else check_worth(detection, controls(examples[_MADE]))
        detection.head_set(name, note=worth).save(out)
        typer.echo(f"head set written to {out}")


_MADE = "made"


def _load_examples(
    data: "Sequence[Path]", labelled: DataOptions, order: "Order", from_passages: Path | None, questions: int
) -> "dict[str, list[LabelledExample]]":
    """The examples of each file or folder by its name, and those that are made from passages."""
    from qrhead_rag.datasets.load import ordered
    from qrhead_rag.datasets.passages import read_passages
    from qrhead_rag.detect.made import make_examples

    examples = {
        path.resolve().name.split(".")[0]: [ordered(example, order, labelled.seed) for example in labelled.load(path)]
        for path in data
    }
    if from_passages is not None:
        made = make_examples(read_passages(from_passages), questions, labelled.candidates or 20, labelled.seed)
        typer.echo("questions made, for instance: " + " | ".join(example.query for example in made[:3]), err=True)
        examples[_MADE] = made
    if not examples:
        raise ValueError("no data; expected labelled examples, or --from-passages with passages")
    if len(examples) < len(data) + (from_passages is not None):
        raise ValueError(f"two of {[str(path) for path in data]} have one name; expected names that tell them apart")
    return examples


def print_report(detection: "Detection", console: Console) -> None:
    """Print the chosen heads, and what they are worth beside the controls."""
    for used in detection.data:
        shortest, longest = used.num_documents
        lengths = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        left_out = f"; {used.num_unusable} that cannot tell heads apart left out" if used.num_unusable else ""
        console.print(f"{used.name}: {len(used.ids)} examples of {lengths} documents{left_out}", markup=False)
    heads = Table("head", "worth", "chosen again in resamples", box=None, pad_edge=False)
    for head in detection.chosen:
        heads.add_row(f"{head.layer}-{head.head}", f"{head.value:.4f}", f"{head.frequency:.0%}")
    console.print(heads)
    table = Table("heads", "nDCG@10, held out", "±", box=None, pad_edge=False)
    for name, quality in detection.quality.items():
        count = "" if name == "all" else f" ({len(detection.chosen)})"
        table.add_row(f"{name}{count}", f"{quality.mean:.3f}", f"{quality.error:.3f}")
    console.print(table)
    criterion, counted = detection.options.criterion, len(detection.chosen)
    chosen, everything, drawn = (detection.quality[name] for name in (criterion, "all", "random"))
    console.print(
        f"{chosen.mean - everything.mean:+.3f} over all heads (p = {detection.p_value_all:.4f}), "
        f"{chosen.mean - drawn.mean:+.3f} over {counted} random heads (standard deviation "
        f"{detection.random_spread:.3f})."
    )
    for against, curve in (("number of heads", detection.by_num_heads), ("deepest layer", detection.by_depth)):
        means = [f"{quality.mean:.3f}" for quality in curve[criterion].quality]
        points = zip(curve[criterion].x, means, ["", *means], strict=False)
        changes = " ".join(f"{x}:{mean}" for x, mean, before in points if mean != before)
        console.print(f"By {against}: {changes}")
    stability = detection.stability
    halves = "" if stability.halves is None else f"{stability.halves:.0%} of the heads common to disjoint halves, "
    overlaps = ", ".join(f"{name} {share:.0%}" for name, share in detection.overlap.items())
    console.print(
        f"{halves}{stability.resamples:.0%} to resamples ({stability.chance:.0%} by chance). Overlap: {overlaps}."
    )


def _copying(writer: "Writer") -> "Tensor":
    from qrhead_rag.detect.copying import copying_scores

    with progress_bar("copying") as on_progress:
        result = copying_scores(writer, on_progress=on_progress)
    typer.echo(f"the model found {result.num_found} of {result.num_runs} needles", err=True)
    return result.scores


def _write_report(detection: "Detection", folder: Path | None) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "detection.json", detection.to_json() + "\n")
    try:
        from qrhead_rag.detect.plot import save_plots

        save_plots(detection, folder)
    except ImportError as error:
        typer.echo(f"no pictures: {error}", err=True)
