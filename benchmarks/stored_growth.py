"""How a passage store grows: reading 100 values of a thousand to a million, and while another process writes.

    python -m benchmarks.stored_growth [--counts 1000,10000,100000,1000000] [--value-bytes 1024] [--folder FOLDER]

Values are random bytes. An encoded passage has about 30 kB, of which a million would take 32 GB: the default is 1 kB,
so that the index grows as that of a million passages does; with `--value-bytes 30000 --counts 1000,10000` values are as
long as real ones. Each read asks for 100 keys drawn at random. Ratios are to the smallest store, and to reading without
a writer.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from qrhead_rag.ranking.byte_store import SqliteStore

READ = 100  # keys a call
WRITTEN = 1_000  # values a call
READERS = 8
spawn = multiprocessing.get_context("spawn")


def key(number: int) -> str:
    """As long as a passage's, and in no order."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def fill(store: SqliteStore, start: int, stop: int, size: int) -> None:
    for first in range(start, stop, WRITTEN):
        store.mset([(key(number), os.urandom(size)) for number in range(first, min(first + WRITTEN, stop))])


def read_seconds(store: SqliteStore, count: int, runs: int, seed: int) -> list[float]:
    """Seconds of each read of 100 keys, of a store of so many entries."""
    generator, seconds = random.Random(seed), []
    for _ in range(runs):
        keys = [key(number) for number in generator.sample(range(count), READ)]
        start = time.perf_counter()
        values = store.mget(keys)
        seconds.append(time.perf_counter() - start)
        assert None not in values
    return seconds


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 95th, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=20)
    return cuts[9] * 1e3, cuts[18] * 1e3


def reader(path: Path, count: int, runs: int, seed: int, start: Barrier, results) -> None:
    with SqliteStore(path) as store:
        store.mget([key(0)])
        start.wait()
        results.put(read_seconds(store, count, runs, seed))


def writer(path: Path, first: int, size: int, stop: Event, written) -> None:
    number = first
    with SqliteStore(path, timeout=60) as store:
        while not stop.is_set():
            store.mset([(key(number + offset), os.urandom(size)) for offset in range(READ)])
            number += READ
            written.value = number - first


def many_readers(path: Path, count: int, runs: int) -> list[float]:
    """Seconds of each read of eight processes that read at once."""
    results, start = spawn.Queue(), spawn.Barrier(READERS)
    readers = [spawn.Process(target=reader, args=(path, count, runs, seed, start, results)) for seed in range(READERS)]
    for process in readers:
        process.start()
    seconds = [second for _ in readers for second in results.get()]
    for process in readers:
        process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="1000,10000,100000,1000000")
    parser.add_argument("--value-bytes", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--folder", help="of the store, which is deleted afterwards")
    options = parser.parse_args()
    counts, size = sorted(int(count) for count in options.counts.split(",")), options.value_bytes
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        needed, free = int(counts[-1] * (size * 1.2 + 300) * 1.2) + 2**28, shutil.disk_usage(folder).free
        if needed > free:
            sys.exit(f"{folder} has {free / 1e9:.1f} of {needed / 1e9:.1f} GB needed free: name another --folder")
        store, medians, before = SqliteStore(Path(folder) / "store.db"), [], 0
        print(f"values of {size} bytes, {READ} keys a read, {os.cpu_count()} cores")
        for count in counts:
            start = time.perf_counter()
            fill(store, before, count, size)
            rate, before = (count - before) / (time.perf_counter() - start), count
            middle, slow = percentiles(read_seconds(store, count, options.runs, seed=0))
            medians.append(middle)
            print(
                f"{count:>9} values, {store.stats().file_bytes / 1e6:,.0f} MB: p50 {middle:.2f} ms, p95 {slow:.2f} ms, "
                f"{middle / medians[0]:.2f} times the smallest; {rate:,.0f} written a second",
                flush=True,
            )
        alone = percentiles(many_readers(store.path, counts[-1], options.runs))
        stop, written = spawn.Event(), spawn.Value("q", 0)
        writing = spawn.Process(target=writer, args=(store.path, counts[-1], size, stop, written))
        writing.start()
        while not written.value:
            time.sleep(0.01)
        first, start = written.value, time.perf_counter()
        beside = percentiles(many_readers(store.path, counts[-1], options.runs))
        rate = (written.value - first) / (time.perf_counter() - start)
        stop.set()
        writing.join()
        for name, (middle, slow) in [("alone", alone), ("while one writes", beside)]:
            print(f"{READERS} processes reading {name}: p50 {middle:.2f} ms, p95 {slow:.2f} ms")
        print(f"ratio of p50: {beside[0] / alone[0]:.2f}; {rate:,.0f} written a second meanwhile")
        store.close()


if __name__ == "__main__":
    main()
