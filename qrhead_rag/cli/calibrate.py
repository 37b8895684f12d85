"""`qrhead calibrate`: from labelled lists, the evidence below which a ranking should say that nothing was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    DataOptions,
    HeadsOption,
    InstructionOption,
    ModelOptions,
    ModeOption,
    OrderOption,
    ReadoutOption,
    expand_groups,
    without_none,
)
from qrhead_rag.cli.output import one_line_errors, progress_bar
from qrhead_rag.files import write_text

if TYPE_CHECKING:
    from qrhead_rag.evaluate.abstain import Calibration, EvidencePair

_POINTS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the right lists kept, that the printed curve shows


@expand_groups
def calibrate(
    data: Annotated[Path, typer.Argument(help="Labelled examples: a file or folder.")],
    *,
    max_wrong: Annotated[
        float | None,
        typer.Option(
            help="Share of the lists without a relevant document that may be ranked; by default both errors weigh the "
            "same."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where floor, curve and settings are written, as JSON.")] = None,
    model: ModelOptions,
    heads: HeadsOption = None,
    mode: ModeOption = None,
    readout: ReadoutOption = None,
    labelled: DataOptions,
    order: OrderOption = "given",
    instruction: InstructionOption = None,
) -> None:
    """Recommend a floor of evidence (min_evidence) for a corpus, or say that lists cannot be told apart.

    Each labelled list is ranked as it is, and once more without its relevant documents.
    """
    with one_line_errors():
        from qrhead_rag.evaluate.abstain import calibrate as run
        from qrhead_rag.evaluate.abstain import measure_evidence

        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        run([], max_wrong)  # refuses an option out of range before anything is read
        examples = labelled.load(data)
        retriever = model.load(heads, mode, **without_none(readout=readout, instruction=instruction))
        with progress_bar("ranking") as on_progress:
            pairs = measure_evidence(retriever, examples, order=order, seed=labelled.seed, on_progress=on_progress)
        calibration = run(pairs, max_wrong)
        console = Console()
        print_curve(str(data.name), pairs, calibration, console)
        _print_floor(calibration, console)
        if out is not None:
            report: dict[str, Any] = {
                "data": data.name,
                "model": retriever.model_name,
                "heads": retriever.heads.heads,
                "mode": retriever.mode,
                "readout": retriever.readout,
                "max_wrong": max_wrong,
                **calibration_data(pairs, calibration),
            }
            write_text(out, json.dumps(report, indent=1) + "\n")


def print_curve(name: str, pairs: "Sequence[EvidencePair]", calibration: "Calibration", console: Console) -> None:
    """What floors do: the share of the right lists kept against the share of the wrong ones passed on."""
    from qrhead_rag.evaluate.abstain import floor_curve

    if calibration.auc is not None:
        table = Table(box=None, pad_edge=False)
        for column in ("floor", "right lists kept", "wrong lists passed on"):
            table.add_column(column, justify="right")
        curve = floor_curve(pairs)
        for kept in _POINTS:  # of the floors that keep so many, the highest
            point = max((point for point in curve if point.kept >= kept), key=lambda point: point.floor)
            table.add_row(f"{point.floor:.4f}", f"{point.kept:.2f}", f"{point.passed_on:.2f}")
        console.print(table)
        auc = calibration.auc
        console.print(
            f"{name}: area under the curve {auc.mean:.3f} [{auc.low:.3f},{auc.high:.3f}], "
            f"{calibration.num_with} lists with a relevant document, {calibration.num_without} without.",
            markup=False,
        )


def calibration_data(pairs: "Sequence[EvidencePair]", calibration: "Calibration") -> dict[str, Any]:
    """Calibration, curve and the evidence of each list, as data."""
    from qrhead_rag.evaluate.abstain import floor_curve

    data = calibration.model_dump()
    data["auc"] = calibration.auc and calibration.auc._asdict()
    return {
        **data,
        "curve": [point._asdict() for point in floor_curve(pairs)],
        "lists": [pair._asdict() for pair in pairs],
    }


def _print_floor(calibration: "Calibration", console: Console) -> None:
    if calibration.floor is None:
        console.print(f"No floor is recommended: {calibration.reason}.", markup=False)
        return
    console.print(
        f"min_evidence={calibration.floor:.4f}: on lists that did not choose it, such a floor keeps "
        f"{calibration.kept:.0%} of those with a relevant document and passes on {calibration.passed_on:.0%} of those "
        "without.",
        markup=False,
    )
