"""What the `qrhead` command writes to stderr: errors, in one line and with exit code 2, and progress."""

import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from qrhead_rag.cluster.run import Progress as Done

_SECONDS_BETWEEN_LINES = 10


def replace_unencodable() -> None:
    """Make the standard streams write ? for a character that their encoding lacks, instead of an error.

    A stream that is set to escape such characters (PYTHONIOENCODING=ascii:backslashreplace) is left so.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors about the user's input into one line and exit code 2, and warnings into one line each.

    Other errors are faults of the program and keep their traceback.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            typer.echo(f"qrhead: {_one_line(error)}", err=True)
            raise typer.Exit(2) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        details = error.errors(include_url=False)
        return "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in details)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        typer.echo(f"qrhead: warning: {' '.join(str(message).split())}", err=True)


@contextmanager
def resumable() -> Iterator[None]:
    """On an interrupt, tell the user how the run is resumed."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("qrhead: interrupted; run the same command again to resume", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; yields a function of the number done and the number in all, which moves it."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def run_bar(noun: str) -> Iterator[Callable[["Done"], None]]:
    """Show progress and speed of a run on stderr: a bar on a terminal, elsewhere a line every few seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = time.monotonic()

        def write_line(done: "Done") -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                typer.echo(f"{done.before + done.done} of {done.total} {noun}, {_rates(done, noun)}", err=True)

        yield write_line
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
    """What a run did, in one line."""
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
