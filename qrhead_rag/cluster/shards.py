"""A data set cut into shards, and the folder that a run over them writes: a file a shard.

A shard is a stretch of a JSONL or Parquet file that is worked on, written and redone as one; what is finished is seen
and never done again.

JSONL is cut where a line ends, Parquet inside its row groups, so that whoever has the shard reads it without the rest.
Shards are cut by bytes, not by records: a model's work goes by the length of texts.

part-000012.jsonl           what was made of shard 12; it appears whole, and last of all that the shard leaves
_errors/part-000012.jsonl   its records that could not be used, each with the reason
_attempts/part-000012.json  where in the shard its worker stands, while it is being worked on
_run.json                   what the run was begun with: the same command goes on with it, another is refused
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrhead_rag.datasets.records import MalformedRecord, RawRecord
from qrhead_rag.extras import require_extra
from qrhead_rag.files import parse_json, write_json_lines, write_text

SUFFIXES = (".jsonl", ".parquet")


class Shard(NamedTuple):
    """A stretch of one file.

    Attributes:
        number: place among all shards of the data set, from 0.
        path: the file.
        start: first byte (JSONL) or row (Parquet), from 0.
        end: the byte or row after the last.
        line: line (JSONL) or row (Parquet) of its first record, from 1.
        num_records: records in it; blank lines are none.
    """

    number: int
    path: str
    start: int
    end: int
    line: int
    num_records: int


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that names, folders and glob patterns stand for, each once, those of one source ordered by name.

    In folders, names that begin with . or _ are passed over.

    Raises:
        FileNotFoundError: a source that stands for nothing.
        ValueError: a file that is neither .jsonl nor .parquet.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.suffix in SUFFIXES and f.name[0] not in "._"]
        else:
            files = [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        if not files:
            raise FileNotFoundError(f"{source}: no file there; expected .jsonl or .parquet, a folder or a pattern")
        found |= dict.fromkeys(file.absolute() for file in files)
    for file in found:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{file}: unknown kind of file; expected .jsonl (unpacked) or .parquet")
    return list(found)


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and a digest of both ends of a file: enough to see that a rerun is over the same data."""
    size, sample = file.stat().st_size, 2**16
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(sample))
        stream.seek(max(0, size - sample))
        digest.update(stream.read())
    return {"bytes": size, "digest": digest.hexdigest()[:16]}


def cut(files: Sequence[Path], shard_bytes: int) -> list[Shard]:
    """Shards of about this many bytes of input, at least one record each. The same input is always cut alike.

    Raises:
        OSError, ValueError: a file that cannot be read.
    """
    shards: list[Shard] = []
    for file in files:
        stretches = _cut_parquet(file, shard_bytes) if file.suffix == ".parquet" else _cut_lines(file, shard_bytes)
        shards += [Shard(number, str(file), *found) for number, found in enumerate(stretches, start=len(shards))]
    return shards


def read(shard: Shard) -> Iterator[RawRecord | MalformedRecord]:
    """The records of a shard, each with its line, or with its row in a Parquet file, from 1."""
    path = Path(shard.path)
    return _read_rows(path, shard) if path.suffix == ".parquet" else _read_lines(path, shard)


def _cut_lines(file: Path, shard_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    start = end = num_records = 0
    first = line = 1
    with file.open("rb") as stream:
        for raw in stream:
            end, line = end + len(raw), line + 1
            num_records += not raw.isspace()
            if end - start >= shard_bytes and num_records:
                yield start, end, first, num_records
                start, first, num_records = end, line, 0
    if num_records:
        yield start, end, first, num_records


def _read_lines(path: Path, shard: Shard) -> Iterator[RawRecord | MalformedRecord]:
    line = shard.line
    with path.open("rb") as stream:
        stream.seek(shard.start)
        left = shard.end - shard.start
        while left > 0:
            raw = stream.readline()
            if not raw:
                raise ValueError(f"{path} ends before byte {shard.end}; expected it as it was when it was cut")
            left -= len(raw)
            if not raw.isspace():
                yield _parsed(path, line, raw)
            line += 1


def _parsed(path: Path, line: int, raw: bytes) -> RawRecord | MalformedRecord:
    try:
        return RawRecord(line, parse_json(raw.decode("utf-8-sig" if line == 1 else "utf-8")))
    except UnicodeDecodeError as error:
        return MalformedRecord(path, line, f"not UTF-8 (byte {raw[error.start]:#04x})")
    except json.JSONDecodeError as error:
        return MalformedRecord(path, line, f"not JSON: {error.msg} at column {error.colno}")


def _cut_parquet(file: Path, shard_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    metadata = _open_parquet(file).metadata
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = max(1, shard_bytes * group.num_rows // max(1, group.total_byte_size))
        for start in range(0, group.num_rows, rows):
            end = min(start + rows, group.num_rows)
            yield first + start, first + end, first + start + 1, end - start
        first += group.num_rows


def _read_rows(path: Path, shard: Shard) -> Iterator[RawRecord | MalformedRecord]:
    file = _open_parquet(path)
    row = group = 0
    while row + file.metadata.row_group(group).num_rows <= shard.start:
        row, group = row + file.metadata.row_group(group).num_rows, group + 1
    # Rows of the group before the shard have to be decoded to be passed over, a few at a time.
    for batch in file.iter_batches(batch_size=shard.num_records, row_groups=[group]):
        if row + len(batch) > shard.start:
            for place, found in enumerate(batch.to_pylist(), start=row):
                if shard.start <= place < shard.end:
                    # What JSON has no word for (dates, decimals) is read as text.
                    yield RawRecord(place + 1, json.loads(json.dumps(found, default=str)))
        row += len(batch)
        if row >= shard.end:
            return


def _open_parquet(file: Path) -> Any:
    parquet, arrow = require_extra("pyarrow.parquet", "ray"), require_extra("pyarrow", "ray")
    try:
        return parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error


_FATAL = 2  # workers that a record may take with it before it is given up


class ShardFolder:
    """Names, claims and leftovers of the files of a run.

    Args:
        folder: made if need be.
        suffix: of the files with results.
    """

    def __init__(self, folder: str | Path, suffix: str) -> None:
        self.folder = Path(folder).absolute()
        self.suffix = suffix

    def result(self, number: int) -> Path:
        """The file with what was made of a shard."""
        return self.folder / f"part-{number:06d}{self.suffix}"

    def errors(self, number: int) -> Path:
        """The file with the records of a shard that could not be used."""
        return self.folder / "_errors" / f"part-{number:06d}.jsonl"

    def attempts(self, number: int) -> "Attempts":
        """What happened to the workers that had a shard before."""
        return Attempts(self.folder / "_attempts" / f"part-{number:06d}.json")

    def settings(self) -> dict[str, Any] | None:
        """What the run was begun with; None where none was.

        Raises:
            ValueError: the folder holds something else.
        """
        run = self.folder / "_run.json"
        if not run.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.glob("[!.]*"))):
                raise ValueError(f"{self.folder} holds something else than a run; expected a new or an empty folder")
            return None
        try:
            return dict(parse_json(run.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{run} cannot be read ({error}); write to another folder") from error

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Begin a run with these settings, or go on with one that was begun with the same.

        Raises:
            ValueError: it was begun with others; the message names the first that differs, and both values.
        """
        wanted = json.loads(json.dumps(settings))
        begun = self.settings()
        if begun is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "_run.json", json.dumps(wanted, indent=1) + "\n")
            begun = wanted
        for name, value in wanted.items():
            if value != begun.get(name):
                raise ValueError(
                    f"{self.folder} was begun with {name} {begun.get(name)!r:.200}, this run has {value!r:.200}; go on "
                    "with the same, or write to another folder"
                )
        for folder in (self.folder / "_errors", self.folder / "_attempts"):
            folder.mkdir(exist_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Remove what workers that were killed have left half written."""
        for folder in (self.folder, self.folder / "_errors", self.folder / "_attempts"):
            for file in folder.glob(".qrhead-*.tmp"):
                file.unlink(missing_ok=True)

    def write_errors(self, number: int, errors: Sequence[Mapping[str, Any]]) -> None:
        """Write the records of a shard that could not be used; no file where there are none."""
        file = self.errors(number)
        if errors:
            write_json_lines(file, errors)
        else:
            file.unlink(missing_ok=True)


class Attempts:
    """Where in a shard a worker stands, kept in a file that outlives it.

    A record can take its worker with it (memory runs out, the driver of the device crashes), again and again. The next
    worker finds the stretch where the last one died and takes its records singly; one that took two workers with it
    alone is given up.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._deaths: dict[str, int] = {}
        if file.exists():
            found = parse_json(file.read_text(encoding="utf-8"))
            at = found["at"]
            self._deaths = found["deaths"] | {at: found["deaths"].get(at, 0) + 1}

    def enter(self, start: int, end: int) -> None:
        """Note that records `start` to `end` (exclusive) come next."""
        write_text(self._file, json.dumps({"at": f"{start}-{end}", "deaths": self._deaths}))

    def suspect(self, start: int, end: int) -> bool:
        """Whether a worker died within this stretch."""
        return f"{start}-{end}" in self._deaths

    def fatal(self, place: int) -> bool:
        """Whether this record alone has taken so many workers with it that it is given up."""
        return self._deaths.get(f"{place}-{place + 1}", 0) >= _FATAL

    def close(self) -> None:
        """Forget everything: the shard is done."""
        self._file.unlink(missing_ok=True)
