"""A SQLite file that threads and processes share: opened at first use, checked, and its errors explained.

There is one connection, behind a lock, and not one a thread: before a fork every connection of the process must be
closed, which no other thread may use meanwhile. Nobody sleeps with the lock, so a thread that waits for another process
to write does not hold up those that read.
"""

import errno
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_APPLICATION = 0x51524842  # "QRHB", in the header of the file
_FORMAT = 1
_SCHEMA = (
    # With a rowid: a table that is sorted by its keys keeps values within the tree, and reads them six times slower.
    # `used` is a day and stands before the value, so that reading it does not read the value.
    "CREATE TABLE entries "
    "(key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, nbytes INTEGER NOT NULL, value BLOB NOT NULL)",
    "CREATE INDEX entries_by_use ON entries (used, nbytes)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_FORMAT}",
)
_EFFECTIVE = os.access in os.supports_effective_ids
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


class StoreError(OSError):
    """A store cannot be reached, read or written. The message names the file, what is wrong, and the remedy.

    >>> from qrhead_rag.ranking.byte_store import SqliteStore
    >>> text = getfixture("tmp_path") / "notes.txt"
    >>> _ = text.write_text("no database")
    >>> SqliteStore(text).mget(["a key"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    qrhead_rag.ranking.sqlite_file.StoreError: ...notes.txt is not a SQLite database; name another file, or delete it
    """


class _FileState(NamedTuple):
    """How a file can be opened, and what tells that it is another one since."""

    access: str
    identity: tuple[int, ...]


class SqliteFile:
    """A connection to a file of entries, for all threads of a process. It is closed before a fork.

    Args:
        path: the file. It is made when it is first opened, and its folder too.
        timeout: seconds for which a file is waited for that another process has locked.
    """

    def __init__(self, path: str | Path, timeout: float) -> None:
        self.path = Path(path).expanduser().absolute()
        self.timeout = timeout
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened = _FileState("", ())
        with _FORK:
            _FILES.add(self)

    @property
    def writable(self) -> bool:
        """Whether the file was last opened for writing."""
        return self._opened.access == "mode=rwc"

    def run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False, timeout: float | None = None) -> T:
        """Do some work with the connection, all of it in one transaction if it writes, and return its result.

        The work is done again if the file was locked, replaced, or changed under a reader that takes no locks.

        Raises:
            StoreError: the file cannot be opened, read or written.
        """
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        cause: sqlite3.Error | None = None
        while True:
            try:
                with self.lock:
                    result = self._attempt(work, write)
                    if self._state() == self._opened:
                        return result
            except sqlite3.Error as error:
                if _code(error) not in _LOCKED and self._state() == self._opened:
                    raise StoreError(self._explain(error)) from error
                cause = error
            except OverflowError as error:
                raise StoreError(self._explain(sqlite3.DataError(str(error)))) from error
            except StoreError:
                raise
            except OSError as error:
                raise StoreError(
                    f"{self.path} cannot be reached ({error}); give the path of a file in a folder that can be written"
                ) from error
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{self.path} was locked by another process for {seconds:g} s; wait until that has written, or "
                    "give the store a longer timeout"
                ) from cause
            time.sleep(random.uniform(0.001, 0.01))

    def close(self) -> None:
        """Close the connection; the next work opens another one."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def _attempt(self, work: Callable[[sqlite3.Connection], T], write: bool) -> T:
        if self._connection is None or self._state() != self._opened:
            self.close()
            self._connection = self._open()
        connection = self._connection
        try:
            if not write:
                return work(connection)
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
            return result
        except BaseException as error:
            # Closing rolls back. A connection that only met a lock stays open, for it will be asked again at once.
            if not isinstance(error, sqlite3.Error) or _code(error) not in _LOCKED or connection.in_transaction:
                self.close()
            raise

    def _state(self) -> _FileState:
        try:
            status = self.path.stat()
        except OSError:  # it is not there, or cannot be reached, as opening it will tell
            return _FileState("mode=rwc", ())
        identity = status.st_dev, status.st_ino
        if all(os.access(path, os.W_OK, effective_ids=_EFFECTIVE) for path in (self.path, self.path.parent)):
            return _FileState("mode=rwc", identity)
        if self.path.with_name(f"{self.path.name}-wal").exists():
            return _FileState("mode=ro", identity)
        # Without locks: they are files, which cannot be made there. That the file changes is seen by its size and time.
        return _FileState("mode=ro&immutable=1", (*identity, status.st_size, status.st_mtime_ns))

    def _open(self) -> sqlite3.Connection:
        self._opened = self._state()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if self.path.exists() and not self.path.with_name(f"{self.path.name}-journal").exists():
            self._refuse_others()
        connection = self._connect(self._opened.access)
        try:
            blank = self._is_blank(connection)
            if self.writable:
                if blank:
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # works before there is a table only
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may cost the last writes
                connection.execute("PRAGMA journal_size_limit = 67108864")
                if blank:
                    self._create(connection)
            elif blank:
                raise StoreError(f"{self.path} is empty and cannot be written; delete it, or make it writable")
            self._opened = self._state()
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, access: str) -> sqlite3.Connection:
        address = f"{self.path.as_uri()}?{access}"
        return sqlite3.connect(address, uri=True, timeout=0, isolation_level=None, check_same_thread=False)

    def _is_blank(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has no table yet. Reads its header alone.

        Raises:
            StoreError: it is another application's, or of a format to come.
        """
        schema, application, version = (  # in this order: another process may be making the table, all at once
            connection.execute(f"PRAGMA {field}").fetchone()[0]
            for field in ("schema_version", "application_id", "user_version")
        )
        if application == _APPLICATION and version > _FORMAT:
            raise StoreError(
                f"{self.path} is of format {version}, made by a newer version of qrhead-rag; this version reads format "
                f"{_FORMAT}: install the newer version, or name another file"
            )
        if application != _APPLICATION and (application or schema):
            raise StoreError(f"{self.path} is a database of another application; name another file")
        return not schema

    def _refuse_others(self) -> None:
        """Look at the header without a trace: a connection that may write changes files by being opened and closed."""
        with closing(self._connect("mode=ro&immutable=1")) as connection:
            try:
                self._is_blank(connection)
            except sqlite3.DatabaseError as error:
                # The file alone may be unfinished where a writer was killed, or is writing; with its -wal it is whole.
                if _code(error) != sqlite3.SQLITE_CORRUPT:
                    raise

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if self._is_blank(connection):  # another process may have been faster
            for statement in _SCHEMA:
                connection.execute(statement)
        connection.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> str:
        path, reason = self.path, str(error)
        if isinstance(error, sqlite3.DataError):
            return f"{path} cannot store a value of this size ({reason}); SQLite stores up to 1,000,000,000 bytes"
        match _code(error):
            case sqlite3.SQLITE_NOTADB:
                return f"{path} is not a SQLite database; name another file, or delete it"
            case sqlite3.SQLITE_READONLY:
                return (
                    f"{path} cannot be written ({reason}); make the file and its folder writable, or name another file"
                )
            case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
                return f"{path} cannot be read or written ({reason}); check that the disk has space, or prune the store"
            case sqlite3.SQLITE_CORRUPT:
                return f"{path} is damaged ({reason}); delete it and its -wal and -shm, and it is filled again"
            case _:
                return f"{path} cannot be opened ({reason}); check that it is a file in a folder that can be written"


def _code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite; 0 of an error that Python's module raises by itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# A child would inherit SQLite's table of the locks of this process, and believe that it has them.
_FORK = threading.RLock()
_FILES: "weakref.WeakSet[SqliteFile]" = weakref.WeakSet()
_closed_for_fork: list[SqliteFile] = []


def _before_fork() -> None:
    _FORK.acquire()
    _closed_for_fork.extend(_FILES)
    for file in _closed_for_fork:
        file.lock.acquire()
        file.close()


def _after_fork() -> None:
    while _closed_for_fork:
        _closed_for_fork.pop().lock.release()
    _FORK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
