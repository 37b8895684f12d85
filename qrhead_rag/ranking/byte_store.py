"""Bytes by key, kept in a file: what encoded passages are stored in.

`ByteStore` is what LangChain's stores of bytes offer, so that any of them serves. `SqliteStore` needs Python alone.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from qrhead_rag.ranking.sqlite_file import SqliteFile, StoreError

__all__ = ["ByteStore", "SqliteStore", "StoreError", "StoreStats"]

_SECONDS_A_DAY = 86_400
_VARIABLES = 500  # of a statement; some builds of SQLite allow 999
_KEYS_A_PAGE = 1_000
_PAGES_A_STEP = 10_000  # 40 MB that other writers wait for


class ByteStore(Protocol):
    """Bytes by key. LangChain's `ByteStore` has these methods."""

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, in their order; None where there is none."""
        ...

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store pairs; a key that was there gets its new value."""
        ...

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, those that are there."""
        ...

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with a prefix."""
        ...


@dataclass(frozen=True)
class StoreStats:
    """What is in a store.

    Attributes:
        entries: their number.
        nbytes: bytes of the values.
        file_bytes: bytes on disk.
    """

    entries: int
    nbytes: int
    file_bytes: int


class SqliteStore:
    """Bytes by key in one SQLite file, which threads and processes share.

    Readers never wait for a writer of another process. The file is opened at first use, so that a store can be pickled
    and handed to workers; `close` closes it until it is used again. What a call has written survives the end of its
    process at any moment; if the machine itself fails, the last calls may be lost, each as a whole.

    Args:
        path: the file. It is made when it is first used, and its folder too.
        timeout: seconds for which a file is waited for that another process has locked.

    >>> with SqliteStore(getfixture("tmp_path") / "passages.db") as store:
    ...     store.mset([("ship", b"encoded"), ("lamp", b"encoded too")])
    ...     store.mget(["lamp", "fog", "ship"])
    ...     list(store.yield_keys(prefix="s"))
    ...     store.stats().entries
    [b'encoded too', None, b'encoded']
    ['ship']
    2
    """

    def __init__(self, path: str | Path, timeout: float = 5.0) -> None:
        self._file = SqliteFile(path, timeout)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, in their order; None where there is none.

        That values were used is noted once a day, if the file can be written at that moment.

        Raises:
            StoreError: the file cannot be opened or read.
        """
        blobs = [_blob(key) for key in keys]
        if not blobs:
            return []

        def read(connection: sqlite3.Connection) -> list[tuple[bytes, int, int, bytes]]:
            rows: list[tuple[bytes, int, int, bytes]] = []
            for some in _batches(list(dict.fromkeys(blobs))):
                where = f"key IN ({','.join('?' * len(some))})"
                rows += connection.execute(f"SELECT key, rowid, used, value FROM entries WHERE {where}", some)
            return rows

        rows, today = self._file.run(read), _today()
        not_today = [(today, rowid) for _, rowid, used, _ in rows if used != today]
        if not_today and self._file.writable:
            with suppress(StoreError):  # reading does not wait for it, nor fail by it
                update = "UPDATE entries SET used = ? WHERE rowid = ?"
                self._file.run(lambda connection: connection.executemany(update, not_today), write=True, timeout=0)
        values = {key: value for key, _, _, value in rows}
        return [values.get(blob) for blob in blobs]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs, or none if that fails; a key that was there gets its new value.

        Raises:
            StoreError: the file cannot be opened or written, or a value is too long.
            TypeError: a value is no bytes.
        """
        today = _today()
        rows = [(_blob(key), today, memoryview(value).nbytes, value) for key, value in key_value_pairs]
        if rows:
            insert = "INSERT OR REPLACE INTO entries (key, used, nbytes, value) VALUES (?, ?, ?, ?)"
            self._file.run(lambda connection: connection.executemany(insert, rows), write=True)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, those that are there. The file keeps its size; what is written next takes the space.

        Raises:
            StoreError: the file cannot be opened or written.
        """
        rows = [(_blob(key),) for key in keys]
        if rows:
            delete = "DELETE FROM entries WHERE key = ?"
            self._file.run(lambda connection: connection.executemany(delete, rows), write=True)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with a prefix, in the order of their UTF-8 bytes.

        They are read in pages: what is written meanwhile may come or not.

        Raises:
            StoreError: the file cannot be opened or read.
        """
        start = first = _blob(prefix or "")
        while True:
            page = self._file.run(partial(_keys_from, start))
            for blob in page:
                if not blob.startswith(first):
                    return
                yield blob.decode("utf-8", "surrogatepass")
            if len(page) < _KEYS_A_PAGE:
                return
            start = page[-1] + b"\0"

    def stats(self) -> StoreStats:
        """Entries, and bytes of values and on disk.

        Raises:
            StoreError: the file cannot be opened or read.
        """
        entries, nbytes = self._file.run(_totals)
        file_bytes = 0
        for file in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with suppress(FileNotFoundError):
                file_bytes += os.stat(file).st_size
        return StoreStats(entries, nbytes, file_bytes)

    def prune(self, max_bytes: int) -> int:
        """Delete the entries whose last use is longest ago, to the day, until the values fit; the file shrinks.

        Among entries of one day the largest go first: few are deleted, and not what is small and describes many.

        Returns:
            The number of entries deleted.

        Raises:
            StoreError: the file cannot be opened or written.
        """

        def delete(connection: sqlite3.Connection) -> int:
            excess = _totals(connection)[1] - max_bytes
            rows = []
            oldest_first = "SELECT rowid, nbytes FROM entries ORDER BY used, nbytes DESC, rowid"
            for rowid, nbytes in connection.execute(oldest_first):
                if excess <= 0:
                    break
                rows.append((rowid,))
                excess -= nbytes
            connection.executemany("DELETE FROM entries WHERE rowid = ?", rows)
            return len(rows)

        deleted = self._file.run(delete, write=True)
        (free,) = self._file.run(lambda connection: connection.execute("PRAGMA freelist_count").fetchone())
        for _ in range(0, free, _PAGES_A_STEP):
            # As a script, which goes on to its end; `execute` stops at the first page.
            self._file.run(lambda connection: connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_A_STEP})"))
        self._file.run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        return deleted

    def close(self) -> None:
        """Close the file, until it is used again."""
        self._file.close()

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SqliteStore({str(self.path)!r})"

    def __reduce__(self) -> tuple[type["SqliteStore"], tuple[str, float]]:
        return type(self), (str(self.path), self._file.timeout)


def _blob(key: str) -> bytes:
    """A key as it is stored: lone surrogates, which real data has now and then, are no text to SQLite."""
    return key.encode("utf-8", "surrogatepass")


def _batches(keys: list[bytes]) -> Iterator[list[bytes]]:
    return (keys[start : start + _VARIABLES] for start in range(0, len(keys), _VARIABLES))


def _keys_from(start: bytes, connection: sqlite3.Connection) -> list[bytes]:
    rows = connection.execute("SELECT key FROM entries WHERE key >= ? ORDER BY key LIMIT ?", (start, _KEYS_A_PAGE))
    return [key for (key,) in rows]


def _today() -> int:
    return int(time.time()) // _SECONDS_A_DAY


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    entries, nbytes = connection.execute("SELECT count(*), coalesce(sum(nbytes), 0) FROM entries").fetchone()
    return entries, nbytes
