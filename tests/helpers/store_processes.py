"""Processes that share a store, and are killed while they write: `python -m tests.helpers.store_processes TASK PATH`.

They are forked from a process without threads, which imports little, so that hundreds of them take seconds.
"""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import select
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path

from qrhead_rag.ranking.byte_store import SqliteStore

PAIRS = 3  # a call
fork = multiprocessing.get_context("fork")


def value(key):
    """What is stored under a key, of up to 8 kB: anything else is wrong."""
    digest = hashlib.shake_256(key.encode())
    return digest.digest(int.from_bytes(digest.digest(2)) % 8_000)


def keys_of(point, call):
    return [f"{point}/{call}/{pair}" for pair in range(PAIRS)]


def write_until_killed(path, point, pipe, limit):
    """Write pairs, and say so after each call. Every third call the file is closed, so that it is written itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = SqliteStore(path)
    for call in count():
        store.mset([(key, value(key)) for key in keys_of(point, call)])
        os.write(pipe, b".")
        if call % 3 == 2:
            store.close()


def calls_until_killed(path, point, limit=0, seconds=0.0):
    """The number of calls that returned before a writer died, by its limit of bytes or by a signal."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            write_until_killed(path, point, writer, limit)
        finally:
            os._exit(1)  # it was not killed
    os.close(writer)
    if not limit:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), (point, limit, status)
    calls = 0
    while select.select([reader], [], [], 0)[0] and (read := os.read(reader, 1 << 16)):
        calls += len(read)
    os.close(reader)
    return calls


def check(path, point, calls):
    """What was said to be written is there, the call that was cut off is there as a whole or not at all."""
    with SqliteStore(path) as store:
        for call in range(calls):
            keys = keys_of(point, call)
            assert store.mget(keys) == [value(key) for key in keys], (point, call)
        keys = keys_of(point, calls)
        assert store.mget(keys) in ([None] * PAIRS, [value(key) for key in keys]), (point, calls)
        assert set(store.yield_keys(prefix=f"{point}/")) <= {
            key for call in range(calls + 1) for key in keys_of(point, call)
        }


def killed(folder):
    """Kill a writer at 200 points: at ever more bytes of a file, and after random times."""
    generator, returned = random.Random(0), []
    for point in range(200):
        if point < 120:
            path = folder / f"{point}.db"
            calls = calls_until_killed(path, point, limit=1 + 997 * point)
        else:
            path = folder / "shared.db"
            calls = calls_until_killed(path, point, seconds=generator.uniform(0, 0.04))
        check(path, point, calls)
        if point < 120:
            path.unlink()
        returned.append(calls)
    return returned


def versions(path):
    """Eight processes read while one writes: each read sees the values of one call."""
    keys = [f"key {number}" for number in range(40)]

    def pairs(version):
        return [(key, value(f"{version}") + f"|{version}".encode()) for key in keys]

    SqliteStore(path).mset(pairs(0))
    stop = fork.Event()

    def write():
        with SqliteStore(path) as store:
            for version in count(1):
                store.mset(pairs(version))
                if stop.is_set():
                    return

    def read(results):
        store, seen = SqliteStore(path), set()
        for _ in range(40):
            values = store.mget(keys)
            version = int(values[0].rpartition(b"|")[2])
            assert dict(pairs(version)) == dict(zip(keys, values, strict=True))
            seen.add(version)
        results.put(len(seen))

    results = fork.Queue()
    writer = fork.Process(target=write)
    writer.start()
    readers = [fork.Process(target=read, args=(results,)) for _ in range(8)]
    for reader in readers:
        reader.start()
    seen = [results.get(timeout=60) for _ in readers]
    stop.set()
    for process in (*readers, writer):
        process.join(60)
        assert process.exitcode == 0
    return seen


def forked(path):
    """A store in use by threads goes through forks: children and parent write, and nothing is lost or waits for ever."""
    store, stop = SqliteStore(path, timeout=60), threading.Event()
    store.mset([("before", b"")])
    written = []

    def write():
        for number in count():
            if stop.is_set():
                return
            store.mset([(f"thread/{number}", value(f"thread/{number}"))])
            written.append(f"thread/{number}")

    thread = threading.Thread(target=write)
    thread.start()
    children = []
    for child in range(8):
        process = os.fork()
        if not process:
            status = 1
            try:
                for call in range(10):
                    store.mset([(key, value(key)) for key in keys_of(child, call)])
                status = 0
            finally:
                os._exit(status)
        children.append(process)
    statuses = [os.waitpid(process, 0)[1] for process in children]
    stop.set()
    thread.join()
    keys = [*written, *(key for child in range(8) for call in range(10) for key in keys_of(child, call))]
    assert store.mget(keys) == [value(key) for key in keys]
    return statuses


def begun(folder):
    """Eight processes make one file, at the same moment."""
    for number in range(10):
        path, barrier = folder / f"{number}.db", fork.Barrier(8)

        def write(child, path=path, barrier=barrier):
            barrier.wait(60)
            SqliteStore(path, timeout=60).mset([(key, value(key)) for key in keys_of(child, 0)])

        processes = [fork.Process(target=write, args=(child,)) for child in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        keys = [key for child in range(8) for key in keys_of(child, 0)]
        with SqliteStore(path) as store:
            assert store.mget(keys) == [value(key) for key in keys]
    return number


def lock(path):
    """Hold the lock of a store until the standard input ends."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    sys.stdin.read()


def read_as_nobody(path):
    """The values of two keys, as another user may read them."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    with SqliteStore(path) as store:
        return [None if value is None else value.decode() for value in store.mget(["first", "second"])]


if __name__ == "__main__":
    task, argument = sys.argv[1:]
    print(json.dumps({"result": globals()[task](Path(argument))}))
