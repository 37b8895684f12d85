"""What `qrhead detect` and `qrhead evaluate` share: options for labelled data, reading it, a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from qrhead_rag.datasets.examples import LabelledExample

FormatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="beir, clipper, dpr, hotpotqa, jsonl, locomo, longmemeval, musique, qrhead; by default recognised.",
    ),
]
UnitOption: TypeAlias = Annotated[
    Literal["session", "round", "turn"] | None,
    typer.Option(help="What a document is: session or round (longmemeval), turn or session (locomo)."),
]
SplitOption: TypeAlias = Annotated[str | None, typer.Option(help="Which qrels (beir); by default test.")]
CandidatesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Documents in a list that BM25 makes (beir, dpr: 20) or cuts (the others: as they are)."),
]
SkipBadOption: TypeAlias = Annotated[bool, typer.Option("--skip-bad", help="Use the rest where records are malformed.")]
ExamplesOption: TypeAlias = Annotated[
    int | None, typer.Option("--examples", help="Use at most this many examples of each file, drawn with the seed.")
]
PartOption: TypeAlias = Annotated[
    str, typer.Option(help="2/3 is the second of three parts, so that heads can be tested on other examples.")
]
OrderOption: TypeAlias = Annotated[
    Literal["given", "reversed", "shuffled"], typer.Option(help="How the candidates stand in a list.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of draws and shuffles.")]


def read_data(
    path: Path,
    *,
    format: str | None,
    unit: Literal["session", "round", "turn"] | None,
    split: str | None,
    candidates: int | None,
    skip_bad: bool,
    examples: int | None,
    part: str,
    seed: int,
) -> "list[LabelledExample]":
    """The examples that the options ask for; malformed records are listed on stderr, one a line.

    Raises:
        ValueError, OSError: as `load_examples`.
        typer.Exit: malformed records without `skip_bad`.
    """
    from qrhead_rag.datasets.load import DatasetError, load_examples, sampled

    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit()):
        raise ValueError(f"--part {part}: expected two numbers, as in 1/2")
    try:
        found = load_examples(path, format=format, unit=unit, split=split, candidates=candidates, skip_bad=skip_bad)
    except DatasetError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        typer.echo(
            f"qrhead: {len(error.problems)} malformed records; mend them, or use the rest with --skip-bad", err=True
        )
        raise typer.Exit(2) from error
    return sampled(found, count=examples, part=(int(number), int(parts)), seed=seed)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by a function of what is done and how much there is in all."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
