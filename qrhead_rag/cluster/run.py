"""A run over the shards of a data set: what is finished is passed over, the rest is shared out to a pool of actors."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qrhead_rag.cluster.pool import Pool, run
from qrhead_rag.cluster.shards import Shard, ShardFolder, cut, find_files, fingerprint, read
from qrhead_rag.datasets.records import MalformedRecord, RawRecord

_SMALLEST, _LARGEST = 2**12, 2**20  # bytes of a shard where nobody says how many
_SHARDS_PER_ACTOR = 8
_REPORTS_PER_SHARD = 8


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: records of the data set.
        before: records in shards that an earlier run had finished.
        done: records of this run, those that failed among them.
        failed: records that could not be used; the errors files have them, each with the reason.
        tokens: tokens of the texts that this run read.
        busy: seconds that its actors worked, added up.
        seconds: seconds since the first actor was at work.
    """

    total: int
    before: int
    done: int = 0
    failed: int = 0
    tokens: int = 0
    busy: float = 0.0
    seconds: float = 0.0

    @property
    def records_per_second(self) -> float:
        """Of all actors together."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all actors together."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_actor_second(self) -> float:
        """Of one actor while it works: what a larger run is planned with."""
        return self.tokens / self.busy if self.busy else 0.0


class Maker(Protocol):
    """What an actor makes of a shard."""

    def begin(self) -> None:
        """A new shard begins."""
        ...

    def add(self, file: str, records: Sequence[RawRecord]) -> tuple[list[str | None], int]:
        """Take records of a file: for each, None or the reason why it cannot be used; and the tokens that were read."""
        ...

    def write(self, path: Path) -> None:
        """Write what was made of the shard, in one step."""
        ...


class _Said(NamedTuple):
    """How far a shard is."""

    shard: int
    done: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0


class _ShardWork:
    """The work of an actor: reads a shard, has something made of its records, and writes that down.

    A record that cannot be used, or that takes its actors with it, is written to the errors file. The result is written
    last, so that a shard whose result is there is done.
    """

    def __init__(
        self, make: Callable[..., Maker], options: Mapping[str, Any], folder: str, suffix: str, root: str
    ) -> None:
        self._maker = make(**options)
        self._folder = ShardFolder(folder, suffix)
        self._root = root

    def __call__(self, task: Sequence[Any]) -> Iterator[_Said]:
        began = time.monotonic()
        shard = Shard(*task)
        file = os.path.relpath(shard.path, self._root)
        attempts = self._folder.attempts(shard.number)
        self._maker.begin()
        records, errors, tokens = list(read(shard)), [], 0
        size = max(1, math.ceil(len(records) / _REPORTS_PER_SHARD))
        for start in range(0, len(records), size):
            end = min(start + size, len(records))
            stretches = [(start, end)]
            if attempts.suspect(start, end):
                stretches = [(place, place + 1) for place in range(start, end)]
            for first, after in stretches:
                taken = records[first:after]
                good = [record for record in taken if isinstance(record, RawRecord)]
                if after == first + 1 and attempts.fatal(first):
                    reasons: list[str | None] = ["its actor died while working on it, more than once"] * len(good)
                else:
                    attempts.enter(first, after)
                    reasons, read_now = self._maker.add(file, good)
                    tokens += read_now
                left = iter(reasons)
                for record in taken:
                    reason = record.reason if isinstance(record, MalformedRecord) else next(left)
                    if reason is not None:
                        errors.append({"file": file, "line": record.line, "id": _id(record), "reason": reason})
            if end == len(records):
                self._folder.write_errors(shard.number, errors)
                self._maker.write(self._folder.result(shard.number))
                attempts.close()
            yield _Said(shard.number, end, len(errors), tokens, time.monotonic() - began)


def _id(record: RawRecord | MalformedRecord) -> Any:
    value = record.value.get("id") if isinstance(record, RawRecord) and isinstance(record.value, dict) else None
    return value if isinstance(value, str | int) else None


def run_shards(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    make: Callable[..., Maker],
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    suffix: str | None,
    pool: Pool,
    shard_bytes: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Have something made of every shard of a data set, in one file a shard.

    Args:
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the results; one that holds the same run, interrupted, is gone on with.
        make: makes the `Maker` of an actor; a class that other processes can import.
        options: its arguments.
        settings: what else has to be the same when a run is gone on with.
        suffix: of the files with results; None is that of the first source.
        pool: where.
        shard_bytes: bytes of input in a shard; None cuts 8 shards for every actor, of 4 KiB to 1 MiB.
        on_progress: called before the first report of an actor and after each.

    Raises:
        FileNotFoundError, ValueError: sources or folder cannot be used.
        RuntimeError: shards were not finished.
    """
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"shard_bytes={shard_bytes}; expected 1 or more, or None")
    files = find_files(sources)
    folder = ShardFolder(out, suffix or files[0].suffix)
    root = os.path.commonpath([file.parent for file in files])
    if shard_bytes is None:
        total = sum(file.stat().st_size for file in files)
        even = min(max(total // (_SHARDS_PER_ACTOR * pool.concurrency[1]), _SMALLEST), _LARGEST)
        shard_bytes = int((folder.settings() or {}).get("shard_bytes", even))
    inputs = [{"file": os.path.relpath(file, root), **fingerprint(file)} for file in files]
    folder.claim({**settings, "suffix": folder.suffix, "shard_bytes": shard_bytes, "inputs": inputs})
    shards = cut(files, shard_bytes)
    left = [shard for shard in shards if not folder.result(shard.number).exists()]
    total = sum(shard.num_records for shard in shards)
    progress = Progress(total=total, before=total - sum(shard.num_records for shard in left))
    tell = on_progress or (lambda progress: None)
    tell(progress)
    latest: dict[int, _Said] = {}
    began: float | None = None
    work = {"make": make, "options": dict(options), "folder": str(folder.folder), "suffix": folder.suffix, "root": root}
    for said in run(pool, _ShardWork, work, left):
        now, earlier = _Said(*said), latest.get(said[0], _Said(said[0]))
        latest[now.shard] = now
        began = time.monotonic() - now.seconds if began is None else began
        progress = replace(
            progress,
            done=progress.done + now.done - earlier.done,
            failed=progress.failed + now.failed - earlier.failed,
            tokens=progress.tokens + now.tokens - earlier.tokens,
            busy=progress.busy + now.seconds - earlier.seconds,
            seconds=time.monotonic() - began,
        )
        tell(progress)
    folder.sweep()
    unfinished = [shard.number for shard in left if not folder.result(shard.number).exists()]
    if unfinished:
        raise RuntimeError(f"{len(unfinished)} shards were not finished, {unfinished[0]} for one; run the same again")
    return progress
