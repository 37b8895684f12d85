"""A run over the shards of a data set on a pool of actors: finished shards are skipped, failed ones tried once more."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from qrhead_rag.cluster.pool import Pool, run_tasks
from qrhead_rag.cluster.shards import Shard, ShardFolder, cut, find_files, fingerprint, read
from qrhead_rag.core.heads import HeadSet
from qrhead_rag.datasets.records import MalformedRecord, RawRecord

_SMALLEST, _LARGEST = 2**12, 2**18  # bytes of a shard, if the caller does not say
_SHARDS_PER_ACTOR = 8
_ATTEMPTS = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: records of the data set.
        before: records in shards that an earlier run finished.
        done: records of this run, failed ones included.
        failed: records that could not be used; the errors files give the reasons.
        tokens: tokens of the texts that this run read.
        busy: seconds that its actors worked, summed over actors.
        seconds: seconds since the first actor began to work.
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
        """Of one actor while it works: the number to plan a larger run with."""
        return self.tokens / self.busy if self.busy else 0.0


class Made(NamedTuple):
    """What an actor made of the records of a shard.

    Attributes:
        reasons: for each record None, or the reason why it cannot be used.
        tokens: tokens of the texts that were read.
        write: writes the result to a path, atomically.
    """

    reasons: list[str | None]
    tokens: int
    write: Callable[[Path], None]


Maker: TypeAlias = Callable[[Sequence[RawRecord], str], Made]
"""Takes the records of a shard and the name of their file."""


class _Report(NamedTuple):
    """What became of a shard; `failed` counts its bad records, None means that it is to be tried again."""

    shard: int
    failed: int | None
    tokens: int
    seconds: float


class _ShardWork:
    """The work of an actor: reads a shard, has something made of its records, and writes the result and the errors.

    The result is written last, so a shard that has one is finished. A shard that fails twice, by an error or because
    its actor dies, is given up: it goes to the errors with the reason.
    """

    def __init__(
        self, make: Callable[..., Maker], options: Mapping[str, Any], folder: str, suffix: str, root: str
    ) -> None:
        self._maker = make(**options)
        self._folder = ShardFolder(folder, suffix)
        self._root = root

    def __call__(self, task: Sequence[Any]) -> _Report:
        began, shard = time.monotonic(), Shard(*task)
        failed: int | None = shard.num_records
        tokens, reason = 0, f"failed {_ATTEMPTS} times; at the last attempt its actor died"
        attempt = self._folder.count_attempt(shard.number)
        if attempt <= _ATTEMPTS:
            try:
                failed, tokens = self._finish(shard)
                return _Report(shard.number, failed, tokens, time.monotonic() - began)
            except Exception as error:
                failed = None if attempt < _ATTEMPTS else failed
                reason = f"{type(error).__name__}: {error}"
        if failed is not None:
            row = {"file": self._name(shard), "line": shard.line, "id": None, "records": failed, "reason": reason}
            self._folder.write_errors(shard.number, [row])
        return _Report(shard.number, failed, tokens, time.monotonic() - began)

    def _finish(self, shard: Shard) -> tuple[int, int]:
        """Write the errors and the result of a shard; return how many records failed, and the tokens read."""
        records = list(read(shard))
        made = self._maker([record for record in records if isinstance(record, RawRecord)], self._name(shard))
        reasons = iter(made.reasons)
        errors = []
        for record in records:
            reason = record.reason if isinstance(record, MalformedRecord) else next(reasons)
            if reason is not None:
                row = {"file": self._name(shard), "line": record.line, "id": _id(record), "reason": reason}
                errors.append(row)
        self._folder.write_errors(shard.number, errors)
        made.write(self._folder.result(shard.number))
        self._folder.forget_attempts(shard.number)  # Ray may ask again, if the machine with the report is lost
        return len(errors), made.tokens

    def _name(self, shard: Shard) -> str:
        return os.path.relpath(shard.path, self._root)


def _id(record: RawRecord | MalformedRecord) -> Any:
    value = record.value.get("id") if isinstance(record, RawRecord) and isinstance(record.value, dict) else None
    return value if isinstance(value, str | int) else None


def run_shards(
    command: str,
    sources: Sequence[str | Path],
    out: str | Path,
    make: Callable[..., Maker],
    options: Mapping[str, Any],
    *,
    suffix: str | None = None,
    pool: Pool | None = None,
    shard_bytes: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Have something made of every shard of a data set, one file per shard.

    Args:
        command: what the run does; a run is resumed only by the same command with the same options.
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the results; an interrupted run in it is resumed.
        make: makes the `Maker` of an actor; a class that other processes can import.
        options: its arguments. A head set in a file is loaded here, since other machines may not have the file.
        suffix: of the result files; None is that of the first source.
        pool: where; None is one actor on this machine.
        shard_bytes: bytes of input in a shard; None cuts 8 shards per actor, of 4 KiB to 256 KiB.
        on_progress: called before the first shard and after each.

    Raises:
        FileNotFoundError, ValueError: sources or folder cannot be used.
        Exception: what `make` raised.
    """
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"shard_bytes={shard_bytes}; expected 1 or more, or None")
    pool = pool or Pool()
    options = {**options, "heads": load_head_set(options.get("heads"))}
    files = find_files(sources)
    folder = ShardFolder(out, suffix or files[0].suffix)
    root = os.path.commonpath([file.parent for file in files])
    if shard_bytes is None:
        size = sum(file.stat().st_size for file in files) // (_SHARDS_PER_ACTOR * pool.concurrency[1])
        shard_bytes = int((folder.settings() or {}).get("shard_bytes", min(max(size, _SMALLEST), _LARGEST)))
    inputs = [{"file": os.path.relpath(file, root), **fingerprint(file)} for file in files]
    settings = {"command": command, **options, "suffix": folder.suffix, "shard_bytes": shard_bytes, "inputs": inputs}
    folder.claim(as_json(settings))
    shards = cut(files, shard_bytes)
    left = [shard for shard in shards if not folder.result(shard.number).exists()]
    total = sum(shard.num_records for shard in shards)
    progress = Progress(total=total, before=total - sum(shard.num_records for shard in left))
    report_progress = on_progress or (lambda progress: None)
    report_progress(progress)
    work = {"make": make, "options": options, "folder": str(folder.folder), "suffix": folder.suffix, "root": root}
    began: float | None = None
    while left:
        again = []
        for report in (_Report(*fields) for fields in run_tasks(pool, _ShardWork, work, left)):
            began = time.monotonic() - report.seconds if began is None else began
            if report.failed is None:
                again.append(shards[report.shard])  # by new actors: an error of the device outlives the shard
            progress = replace(
                progress,
                done=progress.done + (0 if report.failed is None else shards[report.shard].num_records),
                failed=progress.failed + (report.failed or 0),
                tokens=progress.tokens + report.tokens,
                busy=progress.busy + report.seconds,
                seconds=time.monotonic() - began,
            )
            report_progress(progress)
        left = again
    folder.sweep()
    return progress


def load_head_set(heads: Any) -> Any:
    """A head set that is named by a .json file; any other choice of heads as it is."""
    return HeadSet.load(heads) if isinstance(heads, str | Path) and str(heads).endswith(".json") else heads


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON values, to compare a run with the one that it resumes."""
    return dict(json.loads(json.dumps(options, default=_json_value)))


def _json_value(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, HeadSet) else str(value)
