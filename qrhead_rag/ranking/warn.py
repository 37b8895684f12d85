"""Warnings that name the caller's own line, also where frameworks and threads stand between it and this package."""

import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

_OURS = ("qrhead_rag.", "langchain_qrhead.", "llama_index.postprocessor.qrhead.")


class _Line(NamedTuple):
    file: str
    number: int
    module: dict[str, Any]

    @classmethod
    def of(cls, frame: FrameType) -> "_Line":
        return cls(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


_line: ContextVar[_Line | None] = ContextVar("qrhead_line_of_caller", default=None)


def warn_caller(message: str) -> None:
    """Warn at the line of the caller's that led here, however deep within packages the reason lies.

    In a thread it is the line that `warnings_of_threads` has seen. Where there is none, as in a task that a framework
    started or in an application that is itself installed, the warning names what called this package or an integration.
    """
    line = _line_of_caller() or _line.get() or _line_outside()
    registry = line.module.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, line.file, line.number, line.module.get("__name__"), registry)


@contextmanager
def warnings_of_threads() -> Iterator[None]:
    """Let warnings of threads and tasks that are started within name the line that called."""
    token = _line.set(_line_of_caller() or _line.get())
    try:
        yield
    finally:
        _line.reset(token)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _line_of_caller() -> _Line | None:
    return next((_Line.of(frame) for frame in _frames() if not _is_ours(frame) and not _is_installed(frame)), None)


def _line_outside() -> _Line:
    frames = list(_frames())
    outermost = max(index for index, frame in enumerate(frames) if _is_ours(frame))
    return _Line.of(frames[min(outermost + 1, len(frames) - 1)])


def _is_ours(frame: FrameType) -> bool:
    return f"{frame.f_globals.get('__name__')}.".startswith(_OURS)


def _is_installed(frame: FrameType) -> bool:
    return _is_installed_file(frame.f_code.co_filename)


@cache
def _is_installed_file(file: str) -> bool:
    """Whether a file is part of Python or of an installed package."""
    if file.startswith((sysconfig.get_path("stdlib"), "<frozen ")):
        return True
    folders = [entry for entry in sys.path if entry and Path(file).is_relative_to(entry)]
    return bool(folders) and _holds_packages(max(folders, key=len))


@cache
def _holds_packages(folder: str) -> bool:
    """Whether packages are installed in a folder: site-packages, or what `pip install --target` names."""
    return any(Path(folder).glob("*.dist-info"))
