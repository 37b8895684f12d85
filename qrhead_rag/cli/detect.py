"""`qrhead detect`: labelled examples to a head set, with the report that says what it is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    AddressOption,
    CandidatesOption,
    ConcurrencyOption,
    CpusOption,
    DeviceOption,
    DtypeOption,
    ExamplesOption,
    FormatOption,
    GpusOption,
    InstructionOption,
    ModelOption,
    ModeOption,
    OrderOption,
    PartOption,
    SeedOption,
    SkipBadOption,
    SplitOption,
    UnitOption,
    pool_of,
    read_data,
)
from qrhead_rag.cli.output import one_line_errors, progress, resumable
from qrhead_rag.core.heads import EMBEDDED_MODEL, recommended_mode
from qrhead_rag.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from qrhead_rag.detect.recording import Recording
    from qrhead_rag.detect.report import Detection
    from qrhead_rag.evaluate.writer import Writer


def detect(
    data: Annotated[list[Path], typer.Argument(help="Labelled examples: files or folders; they count alike.")],
    out: Annotated[Path, typer.Option(help="Where the head set is written.")] = Path("heads.json"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report: detection.json and, with the extra plot, pictures.")
    ] = None,
    scores: Annotated[
        Path, typer.Option(help="Folder for the recorded scores; what it has already is not run again.")
    ] = Path("head-scores"),
    name: Annotated[str, typer.Option(help="Name of the head set.")] = "detected",
    model: ModelOption = None,
    mode: ModeOption = None,
    criterion: Annotated[
        Literal["contrastive", "mass", "ndcg"], typer.Option(help="What a head is worth on an example.")
    ] = "contrastive",
    num_heads: Annotated[
        str, typer.Option(help="How many heads, or auto: as few as rank held-out examples as well as the best number.")
    ] = "auto",
    max_layer: Annotated[
        int | None, typer.Option(help="Deepest layer a head may be in, from 0; rankings then run none above.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the criterion contrastive.")] = None,
    copying: Annotated[
        bool, typer.Option("--copying", help="Also find the copying heads of Wu et al. and report the overlap.")
    ] = False,
    format: FormatOption = None,
    unit: UnitOption = None,
    split: SplitOption = None,
    candidates: CandidatesOption = None,
    examples: ExamplesOption = None,
    part: PartOption = "1/1",
    order: OrderOption = "shuffled",
    seed: SeedOption = 0,
    skip_bad: SkipBadOption = False,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    ray: Annotated[bool, typer.Option("--ray", help="Record on several machines or processes; extra ray.")] = False,
    address: AddressOption = None,
    concurrency: ConcurrencyOption = "1",
    gpus: GpusOption = 0,
    cpus: CpusOption = None,
) -> None:
    """Find the heads of a model that attend to what a query needs, on labelled examples."""
    with one_line_errors():
        from qrhead_rag.cli.options import load, load_writer
        from qrhead_rag.datasets.load import ordered
        from qrhead_rag.detect.choosing import TEMPERATURE
        from qrhead_rag.detect.detection import detect as choose
        from qrhead_rag.detect.recording import can_compare_heads, record
        from qrhead_rag.detect.report import DetectionOptions
        from qrhead_rag.evaluate.metrics import parse_metrics
        from qrhead_rag.ranking.retriever import QRRetriever

        if num_heads != "auto" and not num_heads.isdigit():
            raise ValueError(f"--num-heads {num_heads}: expected a number or auto")
        mode = mode or recommended_mode(model or EMBEDDED_MODEL)
        parse_metrics(["nDCG@10"])  # fails here, not after the recording, where the extra is missing
        options = DetectionOptions(
            criterion=criterion,
            num_heads="auto" if num_heads == "auto" else int(num_heads),
            max_layer=max_layer,
            temperature=TEMPERATURE if temperature is None else temperature,
            seed=seed,
        )
        lists = {
            path.resolve().name.split(".")[0]: read_data(
                path,
                format=format,
                unit=unit,
                split=split,
                candidates=candidates,
                skip_bad=skip_bad,
                examples=examples,
                part=part,
                seed=seed,
            )
            for path in data
        }
        if len(lists) < len(data):
            raise ValueError(
                f"two of {[str(path) for path in data]} have one name; expected names that tell them apart"
            )
        for file in (out, scores, report):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        examples_of = {label: [ordered(one, order, seed) for one in found] for label, found in lists.items()}
        pool = pool_of(address, concurrency, gpus, cpus) if ray else None
        if pool is None and (address, concurrency, gpus, cpus) != (None, "1", 0, None):
            raise ValueError("--address, --concurrency, --gpus and --cpus say where --ray runs; give it too")
        writer = load_writer(model, device, dtype, max_new_tokens=32) if copying else None
        recordings: dict[str, Recording] = {}
        if pool is None:
            reading = {"instruction": instruction, "cache_bytes": 0}
            if writer is None:
                retriever = load(model, "all", mode, device, dtype, **reading)
            else:  # one model in memory is read and writes
                named = model or EMBEDDED_MODEL
                retriever = QRRetriever(
                    writer.model, writer.tokenizer, heads="all", mode=mode, model_name=named, **reading
                )
            usable = sum(can_compare_heads(one) for found in examples_of.values() for one in found)
            options.check_possible(usable, retriever.shape)  # fails here, not after the recording
            for label, found in examples_of.items():
                with progress(f"recording {label}") as moved, resumable():
                    recordings[label] = record(retriever, found, scores, moved)
            model_name, shape = retriever.model_name, retriever.shape
        else:
            from qrhead_rag.cluster.record import record_on_ray

            read = {"model": model, "mode": mode, "device": device, "dtype": dtype, "instruction": instruction}
            with progress("recording") as moved, resumable():
                recordings, model_name, shape = record_on_ray(examples_of, scores, pool=pool, on_progress=moved, **read)
        copied = None if writer is None else _copying(writer)
        detection = choose(recordings, model_name, shape, mode, options, copying=copied)
        detection.head_set(name).save(out)
        _write_report(detection, report)
        show(detection, Console())
        typer.echo(f"head set written to {out}")


def show(detection: "Detection", console: Console) -> None:
    """The report on a terminal: the chosen heads, and what they are worth beside the controls."""
    for used in detection.data:
        shortest, longest = used.num_documents
        lengths = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        left_out = f"; {used.num_unusable} that cannot tell heads apart left out" if used.num_unusable else ""
        console.print(f"{used.name}: {len(used.ids)} examples of {lengths} documents{left_out}", markup=False)
    heads = Table("head", "worth", "found again", box=None, pad_edge=False)
    for one in detection.chosen:
        heads.add_row(f"{one.layer}-{one.head}", f"{one.value:.4f}", f"{one.frequency:.0%}")
    console.print(heads)
    quality = Table("heads", "nDCG@10, held out", "±", box=None, pad_edge=False)
    for name, found in detection.quality.items():
        count = "" if name == "all" else f" ({len(detection.chosen)})"
        quality.add_row(f"{name}{count}", f"{found.mean:.3f}", f"{found.error:.3f}")
    console.print(quality)
    criterion, counted = detection.options.criterion, len(detection.chosen)
    found, everything, drawn = (detection.quality[name] for name in (criterion, "all", "random"))
    console.print(
        f"{found.mean - everything.mean:+.3f} over all heads (p = {detection.p_value_all:.4f}), "
        f"{found.mean - drawn.mean:+.3f} over {counted} heads drawn blindly (which spread by "
        f"{detection.random_spread:.3f})."
    )
    for against, curve in (("number of heads", detection.by_num_heads), ("deepest layer", detection.by_depth)):
        means = [f"{one.mean:.3f}" for one in curve[criterion].quality]
        points = zip(curve[criterion].x, means, ["", *means], strict=False)
        changes = " ".join(f"{x}:{mean}" for x, mean, before in points if mean != before)
        console.print(f"By {against}: {changes}")
    firm = detection.stability
    halves = "" if firm.halves is None else f"{firm.halves:.0%} of the heads common to disjoint halves, "
    overlaps = ", ".join(f"{name} {share:.0%}" for name, share in detection.overlap.items())
    console.print(f"{halves}{firm.resamples:.0%} to resamples ({firm.chance:.0%} by chance). Overlap: {overlaps}.")


def _copying(writer: "Writer") -> "Tensor":
    from qrhead_rag.detect.copying import copying_scores

    with progress("copying") as moved:
        found = copying_scores(writer, on_progress=moved)
    typer.echo(f"the model found {found.num_found} of {found.num_runs} needles", err=True)
    return found.scores


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
