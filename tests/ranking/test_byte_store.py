"""Stores of bytes: LangChain's interface, and what a file meets: kills, forks, locks, full disks, files of others."""

import inspect
import json
import os
import pickle
import resource
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.stores import BaseStore, InMemoryByteStore

from qrhead_rag.ranking import byte_store
from qrhead_rag.ranking.byte_store import ByteStore, SqliteStore, StoreError, StoreStats
from tests.helpers.alone import ROOT

NOBODY = 65534
METHODS = ["mget", "mset", "mdelete", "yield_keys"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def store(path):
    with SqliteStore(path) as store:
        yield store


@pytest.fixture
def open_folder():
    """A folder that other users reach, as they do not reach pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def powerless():
    """Rights taken away, where the tests run with all of them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def full_disk(limit):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start(task, path):
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "tests.helpers.store_processes", task, str(path)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams)


def result_of(task, path):
    """What a task of `store_processes` returns."""
    with start(task, path) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out)["result"]


def fails(message, call, *arguments):
    with pytest.raises(StoreError, match=message) as error:
        call(*arguments)
    return error.value


# The interface


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [ByteStore, SqliteStore])
def test_methods_are_called_as_those_of_langchain(kind, method):
    def parameters(owner):
        return [(name, parameter.kind, parameter.default) for name, parameter in
                inspect.signature(getattr(owner, method)).parameters.items()]  # fmt: skip

    assert parameters(kind) == parameters(BaseStore)


texts = st.text(
    st.sampled_from(["a", "b", "%", "_", "*", "\0", "é", "\ud800", "\udfff", "\U0001f600", "\U0010ffff"]), max_size=4
)
keys = st.lists(texts, max_size=6)
calls = st.one_of(
    st.tuples(st.just("mset"), st.lists(st.tuples(texts, st.binary(max_size=9)), max_size=6)),
    st.tuples(st.sampled_from(["mget", "mdelete"]), keys),
    st.tuples(st.just("yield_keys"), st.none() | texts),
)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(calls, max_size=12))
def test_answers_are_those_of_langchain(store, calls):
    store.mdelete(list(store.yield_keys()))
    reference = InMemoryByteStore()
    for method, argument in calls:
        if method == "yield_keys":
            assert list(store.yield_keys(prefix=argument)) == sorted(
                reference.yield_keys(prefix=argument), key=lambda key: key.encode("utf-8", "surrogatepass")
            )
        else:
            assert getattr(store, method)(argument) == getattr(reference, method)(argument)


def test_more_keys_than_a_statement_takes_or_a_page_holds(store):
    pairs = [(f"key {number}", str(number).encode()) for number in range(2_300)]
    store.mset(pairs)
    backwards = pairs[::-1] + pairs[:3] + [("no key", None)]
    assert store.mget([key for key, _ in backwards]) == [value for _, value in backwards]
    assert list(store.yield_keys()) == sorted(key for key, _ in pairs)
    store.mdelete([key for key, _ in pairs[:1_200]])
    assert store.stats().entries == 1_100


def test_keys_that_are_written_or_deleted_while_they_are_listed(store):
    store.mset([(f"{number:04}", b"") for number in range(1_500)])
    listed = store.yield_keys()
    assert next(listed) == "0000"
    store.mdelete([f"{number:04}" for number in range(900, 1_200)])
    assert list(listed) == [f"{number:04}" for number in [*range(1, 1_000), *range(1_200, 1_500)]]


def test_a_value_that_is_no_bytes_stores_nothing(store):
    with pytest.raises(TypeError, match="bytes-like"):
        store.mset([("first", b"1"), ("second", "2")])
    assert store.mget(["first"]) == [None]
    store.mset([("array", bytearray(b"1")), ("view", memoryview(b"2"))])
    assert store.mget(["array", "view"]) == [b"1", b"2"]


@pytest.mark.parametrize("size", [1_000_000_001, 2**31])
def test_a_value_that_is_too_long_stores_nothing(store, size):
    """It is never touched, so that it takes no memory."""
    fails("cannot store a value of this size", store.mset, [("first", b"1"), ("long", bytes(size))])
    assert store.mget(["first"]) == [None]


# Opening and closing


def test_nothing_is_opened_before_it_is_used_and_closing_is_no_end(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folders" / "a b?#%.db"
    store = SqliteStore(path)
    assert [store.mget([]), store.mset([]), store.mdelete([])] == [[], None, None]
    assert not path.parent.exists()
    store.mset([("key", b"value")])
    assert path.exists()
    store.close()
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["a b?#%.db"]
    assert store.mget(["key"]) == [b"value"]
    assert repr(store) == f"SqliteStore({str(path)!r})"
    store.close()


def test_a_path_stays_where_it_was_and_a_store_is_pickled_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SqliteStore("store.db", timeout=7) as store:
        store.mset([("key", b"value")])
        monkeypatch.chdir("/")
        with pickle.loads(pickle.dumps(store)) as other:
            assert other.mget(["key"]) == store.mget(["key"]) == [b"value"]
            assert other._file.timeout == 7


def test_a_file_that_is_deleted_meanwhile_begins_anew(store, path):
    store.mset([("key", b"value")])
    for file in path.parent.iterdir():
        file.unlink()
    assert store.mget(["key"]) == [None]
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    store.mset([("key", b"new")])
    with SqliteStore(path) as other:
        assert other.mget(["key"]) == [b"new"]


def test_a_file_that_is_replaced_meanwhile_is_read(store, path):
    store.mset([("key", b"value")])
    with SqliteStore(path.with_name("other.db")) as other:
        other.mset([("key", b"of the other")])
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink()
    os.replace(other.path, path)
    assert store.mget(["key"]) == [b"of the other"]
    store.mset([("key", b"new")])
    with SqliteStore(path) as other:
        assert other.mget(["key"]) == [b"new"]


# Files of others


def test_a_text_file_stays_as_it_is(store, path):
    path.write_text("Not a database.")
    for call, argument in [(store.mget, ["key"]), (store.mset, [("key", b"")]), (store.prune, 0)]:
        assert str(path) in str(fails("is not a SQLite database; name another file", call, argument))
    assert path.read_text() == "Not a database."
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("statements", [["CREATE TABLE entries (key, value)"], ["PRAGMA application_id = 7"],
                                        ["PRAGMA journal_mode = WAL", "CREATE TABLE notes (text)"]])  # fmt: skip
def test_a_database_of_another_application_stays_as_it_is(store, path, statements):
    with closing(sqlite3.connect(path)) as other:
        for statement in statements:
            other.execute(statement)
        if "WAL" in statements[0]:
            other.commit()
    before = path.read_bytes()
    fails("is a database of another application; name another file", store.mget, ["key"])
    fails("is a database of another application; name another file", store.mset, [("key", b"")])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_journal_of_another_application_stays_beside_its_database(store, path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in ["PRAGMA journal_mode = WAL", "CREATE TABLE notes (text)", "PRAGMA wal_checkpoint"]:
            other.execute(statement)
        other.execute("INSERT INTO notes VALUES ('kept')")
        copy = path.with_name("copy.db")
        for end in ("", "-wal"):
            Path(f"{copy}{end}").write_bytes(Path(f"{path}{end}").read_bytes())
    before = Path(f"{copy}-wal").read_bytes()
    fails("is a database of another application", SqliteStore(copy).mget, ["key"])
    assert Path(f"{copy}-wal").read_bytes() == before
    assert not Path(f"{copy}-shm").exists()


def test_a_store_of_a_format_to_come_is_refused(store, path):
    store.mset([("key", b"value")])
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    fails("of format 2, made by a newer version of qrhead-rag; this version reads format 1", store.mget, ["key"])


def test_an_empty_file_becomes_a_store(store, path):
    path.touch()
    store.mset([("key", b"value")])
    assert store.mget(["key"]) == [b"value"]


def test_a_damaged_file_is_named(store, path):
    store.mset([(f"key {number}", bytes(3_000)) for number in range(100)])
    store.close()
    content = bytearray(path.read_bytes())
    content[4_096:] = b"\xa5" * (len(content) - 4_096)
    path.write_bytes(content)
    assert str(path) in str(fails("is damaged", store.mget, ["key 5"]))


@pytest.mark.parametrize("name", ["file/store.db", "folder"])
def test_what_is_no_file_in_a_folder(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    store = SqliteStore(tmp_path / name)
    error = fails("cannot be (reached|opened)", store.mget, ["key"])
    assert str(store.path) in str(error)


# Rights and space


def test_a_file_that_cannot_be_written_is_read(open_folder):
    path = open_folder / "store.db"
    with SqliteStore(path) as writer:
        writer.mset([("key", b"value")])
    path.chmod(0o444)
    with powerless(), SqliteStore(path) as reader:
        assert reader.mget(["key"]) == [b"value"]
        assert str(path) in str(
            fails("cannot be written .*make the file and its folder writable", reader.mset, [("key", b"")])
        )
        assert reader.mget(["key"]) == [b"value"]
        assert os.listdir(open_folder) == ["store.db"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_reader_without_rights_sees_what_is_written_meanwhile(open_folder):
    """It takes no locks, and has to look for changes itself."""
    path = open_folder / "store.db"
    with SqliteStore(path) as writer:
        writer.mset([("key", b"0")])
    reader = SqliteStore(path)
    for number in range(1, 20):
        with SqliteStore(path) as writer:
            writer.mset([("key", str(number).encode()), (f"more {number}", bytes(9_000))])
        with powerless():
            assert reader.mget(["key"]) == [str(number).encode()]
    reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_another_user_reads_what_a_writer_has_open(open_folder):
    with SqliteStore(open_folder / "store.db") as writer:
        writer.mset([("first", b"1")])
        assert (open_folder / "store.db-wal").stat().st_size > 0
        assert result_of("read_as_nobody", writer.path) == ["1", None]
        writer.mset([("second", b"2")])
        assert result_of("read_as_nobody", writer.path) == ["1", "2"]


def test_a_store_becomes_writable(open_folder):
    path = open_folder / "store.db"
    with SqliteStore(path) as writer:
        writer.mset([("key", b"value")])
    store = SqliteStore(path)
    with powerless():
        store.mget(["key"])
    if os.geteuid() == 0:
        store.mset([("key", b"new")])
        assert store.mget(["key"]) == [b"new"]
    store.close()


def test_a_folder_that_cannot_be_written(open_folder):
    store = SqliteStore(open_folder / "deep" / "store.db")
    open_folder.chmod(0o555)
    with powerless():
        fails("cannot be reached .*give the path of a file in a folder that can be written", store.mset, [("key", b"")])
    open_folder.chmod(0o755)


def test_a_full_disk_loses_nothing(store, path):
    store.mset([("key", b"value")])
    with full_disk(200_000):
        error = fails(
            "cannot be read or written .*check that the disk has space",
            store.mset,
            [(f"{n}", bytes(50_000)) for n in range(20)],
        )
        assert str(path) in str(error)
        assert store.mget(["key", "0", "19"]) == [b"value", None, None]
    store.mset([("0", b"zero")])
    assert store.mget(["key", "0", "19"]) == [b"value", b"zero", None]


def test_a_disk_that_was_full_at_first(store):
    with full_disk(3_000):
        fails("cannot be read or written", store.mset, [("key", b"value")])
    store.mset([("key", b"value")])
    assert store.mget(["key"]) == [b"value"]


# Several processes and threads


@pytest.mark.slow
def test_a_writer_is_killed_at_200_points(tmp_path):
    """In memory where there is such a disk, for a writer waits for a disk most of its time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        returned = result_of("killed", folder)
    assert len(returned) == 200
    assert min(returned) == 0
    assert min(max(returned[:120]), max(returned[120:])) > 1


@pytest.mark.slow
def test_eight_processes_read_while_one_writes(path):
    seen = result_of("versions", path)
    assert len(seen) == 8
    assert max(seen) > 1


@pytest.mark.slow
def test_eight_processes_make_a_file_at_once(tmp_path):
    assert result_of("begun", tmp_path) == 9


@pytest.mark.slow
def test_a_store_in_use_goes_through_forks(path):
    assert result_of("forked", path) == [0] * 8


def test_a_store_that_another_process_has_locked(store, path):
    store.mset([("key", b"value")])
    with start("lock", path) as other:
        assert other.stdout.readline() == "locked\n"
        impatient = SqliteStore(path, timeout=0.1)
        error = fails("was locked by another process for 0.1 s; .* longer timeout", impatient.mset, [("key", b"")])
        assert str(path) in str(error)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(SqliteStore.mset, patient := SqliteStore(path, timeout=60), [("key", b"new")])
            for _ in range(20):  # a thread that waits holds up none that reads
                assert patient.mget(["key"]) == impatient.mget(["key"]) == [b"value"]
            assert not waiting.done()
            other.communicate("", timeout=60)
            waiting.result(timeout=60)
        assert store.mget(["key"]) == [b"new"]
        patient.close(), impatient.close()


def test_threads_share_a_store(store):
    def work(thread):
        pairs = [(f"{thread}/{number}", f"{thread}:{number}".encode() * 500) for number in range(20)]
        for start_ in range(0, 20, 4):
            store.mset(pairs[start_ : start_ + 4])
            assert store.mget([key for key, _ in pairs[: start_ + 4]]) == [value for _, value in pairs[: start_ + 4]]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert store.stats().entries == 160


# Room


@pytest.fixture
def day(monkeypatch):
    """Sets the day."""
    return lambda number: monkeypatch.setattr(byte_store, "_today", lambda: number)


def test_stats_tell_entries_and_bytes(store, path):
    assert store.stats() == StoreStats(0, 0, store.stats().file_bytes)
    store.mset([("a", bytes(100)), ("b", bytes(50)), ("a", bytes(7_000))])
    stats = store.stats()
    assert (stats.entries, stats.nbytes) == (2, 7_050)
    assert stats.file_bytes == path.stat().st_size + Path(f"{path}-wal").stat().st_size
    store.close()
    assert store.stats().file_bytes == path.stat().st_size


def test_what_was_not_used_for_longest_is_pruned_and_the_file_shrinks(store, day):
    for number in range(5):
        day(number)
        store.mset([(f"{number}{letter}", bytes(30_000)) for letter in "ab"])
    day(9)
    store.mget(["0b", "1a", "no key"])
    day(10)
    store.mset([("2b", bytes(30_000))])
    full = store.stats()
    assert store.prune(full.nbytes) == 0
    assert store.prune(150_000) == 5  # 0a, 1b, 2a, 3a, 3b
    assert list(store.yield_keys()) == ["0b", "1a", "2b", "4a", "4b"]
    assert store.prune(31_000) == 4
    assert list(store.yield_keys()) == ["2b"]
    assert store.stats().file_bytes < full.file_bytes / 5
    assert store.prune(0) == 1
    assert store.stats().nbytes == 0


def test_of_a_day_the_largest_are_pruned_first_and_of_those_what_was_written_first(store):
    store.mset([("z", bytes(10)), ("b", bytes(9)), ("a", bytes(10))])
    store.mset([("z", bytes(10))])
    assert store.prune(20) == 1
    assert list(store.yield_keys()) == ["b", "z"]


def test_reading_writes_once_a_day(store, path, day):
    day(1)
    store.mset([("key", b"value")])
    with closing(sqlite3.connect(path)) as other:

        def writes_of(call, *arguments):
            before = other.execute("PRAGMA data_version").fetchone()
            call(*arguments)
            return other.execute("PRAGMA data_version").fetchone() != before

        assert not writes_of(store.mget, ["key"])
        day(2)
        assert writes_of(store.mget, ["key"])
        assert not writes_of(store.mget, ["key"])
        day(3)
        other.execute("BEGIN IMMEDIATE")  # the day cannot be noted, and is not waited for
        assert store.mget(["key"]) == [b"value"]
        other.execute("ROLLBACK")
        with full_disk(100):
            assert store.mget(["key"]) == [b"value"]
        assert writes_of(store.mget, ["key"])
