"""What the `qrhead` command says when something is wrong: one line on stderr, and exit code 2 for bad input. And the
output itself, which no sign that the terminal lacks may stop.
"""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from pydantic import ValidationError


def replace_unencodable() -> None:
    """Make the standard streams write ? for a sign that their encoding lacks, instead of an error.

    A stream that is set to escape such signs (PYTHONIOENCODING=ascii:backslashreplace) is left so.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors about what the user gave into one line and exit code 2, and warnings into one line each.

    Errors of other kinds are faults of the program and keep their traceback.
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
