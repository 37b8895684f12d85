"""Atomic writes and safe JSON reads.

The package pickles nothing: its files are JSON or safetensors.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a temporary file, which replaces `path` in one step at the end.

    A reader sees the old file or the new one, also if several processes write at once or the writer is interrupted. A
    symbolic link is replaced, not the file it points to.

    Raises:
        OSError: the folder is missing or cannot be written.

    >>> folder = getfixture("tmp_path")
    >>> with atomic_write(folder / "scores.json") as file:
    ...     _ = file.write_text("[0.7]")
    >>> (folder / "scores.json").read_text()
    '[0.7]'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(path.parent))
    unfinished = path.with_name(f".qrhead-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        unfinished.touch(exist_ok=False)
        with suppress(FileNotFoundError):
            shutil.copymode(path, unfinished)
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # safetensors makes files that nobody else can read
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step."""
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def write_json_lines(path: str | Path, records: Iterable[Any]) -> None:
    """Write each record as a line of JSON, all in one step.

    Lone surrogates, which real data has now and then and pydantic refuses to write, are escaped.
    """
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def parse_json(text: str) -> Any:
    """Parse JSON, with one error for everything that cannot be parsed.

    Raises:
        json.JSONDecodeError: not JSON, or nested deeper or with longer numbers than Python reads.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: nested too deeply: line 1 column 1 (char 0)
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(str(error), text, 0) from error
