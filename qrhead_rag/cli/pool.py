"""What the commands on Ray share: options for where they run, and how far they are, on stderr."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from qrhead_rag.cluster.pool import Pool
    from qrhead_rag.cluster.run import Progress as Done

AddressOption: TypeAlias = Annotated[
    str | None, typer.Option(help="A Ray cluster, auto or ray://HOST:PORT; by default one is started on this machine.")
]
ConcurrencyOption: TypeAlias = Annotated[
    str, typer.Option(help="Actors, each with a model: a number, or as in 1-8 the fewest and the most.")
]
GpusOption: TypeAlias = Annotated[float, typer.Option(help="GPUs of each actor, perhaps a part of one.")]
CpusOption: TypeAlias = Annotated[
    int | None, typer.Option(help="CPUs of each actor; by default this machine's are shared out, on a cluster 1.")
]

_SECONDS_BETWEEN_LINES = 10


def pool_of(address: str | None, concurrency: str, gpus: float, cpus: int | None) -> "Pool":
    """Where to run, from the options.

    Raises:
        ValueError: an option out of range.
    """
    from qrhead_rag.cluster.pool import Pool

    if not re.fullmatch(r"\d+(-\d+)?", concurrency):
        raise ValueError(f"--concurrency {concurrency}: expected a number, or two as in 1-8")
    fewest, _, most = concurrency.partition("-")
    return Pool(address=address, concurrency=(int(fewest), int(most or fewest)), gpus=gpus, cpus=cpus)


@contextmanager
def resumable() -> Iterator[None]:
    """Say that an interrupted run is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("qrhead: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


@contextmanager
def shown(noun: str) -> Iterator[Callable[["Done"], None]]:
    """How far a run is and how fast, on stderr: a bar on a terminal, elsewhere a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def say(done: "Done") -> None:
            nonlocal said
            if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                typer.echo(f"{done.before + done.done} of {done.total} {noun}, {_rates(done, noun)}", err=True)

        yield say
        return
    columns = (
        TextColumn(noun),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rates]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(noun, total=None, rates="starting")

        def move(done: "Done") -> None:
            rates = _rates(done, noun) if done.done else "starting"
            bar.update(task, completed=done.before + done.done, total=done.total, rates=rates)

        yield move


def summary(done: "Done", noun: str, folder: str) -> str:
    """What a run did, in a line or two."""
    before = f", {done.before} of them before" if done.before else ""
    lines = [f"{done.before + done.done - done.failed} of {done.total} {noun} in {folder}{before}"]
    if done.done:
        lines.append(
            f"{_rates(done, noun)}, {done.tokens_per_actor_second:.0f} tokens/s an actor, in {done.seconds:.0f} s"
        )
    return "; ".join(lines)


def _rates(done: "Done", noun: str) -> str:
    failed = f", {done.failed} failed" if done.failed else ""
    return f"{done.records_per_second:.1f} {noun}/s, {done.tokens_per_second:.0f} tokens/s{failed}"
