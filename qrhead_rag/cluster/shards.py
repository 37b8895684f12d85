"""A data set cut into shards, and the folder that a run over them writes: one file per shard.

A shard is a range of a JSONL or Parquet file that is processed, written and redone as a whole. A finished one is never
done again.

JSONL is cut at line ends, Parquet inside its row groups, so a worker reads its shard without the rest of the file.
Shards are cut by bytes, not by records, because a model's work grows with the length of texts.

part-000012.jsonl           what was made of shard 12; written atomically, and last
_errors/part-000012.jsonl   its records that could not be used, or the shard itself, with the reason
_attempts/part-000012       a byte for each time that a worker began the shard in this run
_run.json                   the options of the run: the same ones resume it, others are refused
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrhead_rag.datasets.records import MalformedRecord, RawRecord, parse_json_line
from qrhead_rag.extras import require_extra
from qrhead_rag.files import parse_json, write_json_lines, write_text

SUFFIXES = (".jsonl", ".parquet")


class Shard(NamedTuple):
    """A range of one file.

    Attributes:
        number: index among all shards of the data set.
        path: the file.
        start: first byte (JSONL) or row (Parquet), from 0.
        end: the byte or row after the last.
        line: line (JSONL) or row (Parquet) of its first record, from 1.
        num_records: records in it; blank lines do not count.
    """

    number: int
    path: str
    start: int
    end: int
    line: int
    num_records: int


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that names, folders and glob patterns match, each once, sorted by name within a source.

    In folders, names that begin with . or _ are skipped.

    Raises:
        FileNotFoundError: a source that matches nothing.
        ValueError: a file that is neither .jsonl nor .parquet.
    """
    matched: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.suffix in SUFFIXES and f.name[0] not in "._"]
        else:
            files = [path] if path.exists() else sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        if not files:
            raise FileNotFoundError(f"{source}: no file there; expected .jsonl or .parquet, a folder or a pattern")
        matched |= dict.fromkeys(file.absolute() for file in files)
    for file in matched:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{file}: unknown kind of file; expected .jsonl (unpacked) or .parquet")
    return list(matched)


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and a digest of both ends of a file: enough to see that a resumed run reads the same data."""
    size, sample = file.stat().st_size, 2**16
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(sample))
        stream.seek(max(0, size - sample))
        digest.update(stream.read())
    return {"bytes": size, "digest": digest.hexdigest()[:16]}


def cut(files: Sequence[Path], shard_bytes: int) -> list[Shard]:
    """Cut files into shards of about this many bytes, at least one record each. The same files give the same shards.

    Raises:
        OSError, ValueError: a file that cannot be read.
    """
    shards: list[Shard] = []
    for file in files:
        ranges = _cut_parquet(file, shard_bytes) if file.suffix == ".parquet" else _cut_lines(file, shard_bytes)
        shards += [Shard(number, str(file), *fields) for number, fields in enumerate(ranges, start=len(shards))]
    return shards


def read(shard: Shard) -> Iterator[RawRecord | MalformedRecord]:
    """The records of a shard, each with its line (JSONL) or row (Parquet), from 1."""
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
                raise ValueError(f"{path} ends before byte {shard.end}; expected it as it was when the run started")
            left -= len(raw)
            if not raw.isspace():
                yield _parsed(path, line, raw)
            line += 1


def _parsed(path: Path, line: int, raw: bytes) -> RawRecord | MalformedRecord:
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return MalformedRecord(path, line, f"not UTF-8 (byte {raw[error.start]:#04x})")
    return parse_json_line(text, path, line)


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
    # Rows of the group before the shard are decoded and skipped, a few at a time.
    for batch in file.iter_batches(batch_size=shard.num_records, row_groups=[group]):
        if row + len(batch) > shard.start:
            for index, value in enumerate(batch.to_pylist(), start=row):
                if shard.start <= index < shard.end:
                    # Types that JSON lacks (dates, decimals) become text.
                    yield RawRecord(index + 1, json.loads(json.dumps(value, default=str)))
        row += len(batch)
        if row >= shard.end:
            return


def _open_parquet(file: Path) -> Any:
    parquet, arrow = require_extra("pyarrow.parquet", "ray"), require_extra("pyarrow", "ray")
    try:
        return parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error


class ShardFolder:
    """Names, settings and leftovers of the files of a run.

    Args:
        folder: made if need be.
        suffix: of the result files.
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

    def _attempts(self, number: int) -> Path:
        return self.folder / "_attempts" / f"part-{number:06d}"

    def settings(self) -> dict[str, Any] | None:
        """The options of the run in this folder; None if there is none.

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
        """Start a run with these settings (JSON values), or resume one that was started with the same.

        Raises:
            ValueError: it was started with others; the message names the first that differs, and both values.
        """
        started = self.settings()
        if started is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "_run.json", json.dumps(settings, indent=1) + "\n")
            started = dict(settings)
        for name, value in settings.items():
            if value != started.get(name):
                raise ValueError(
                    f"{self.folder} was started with {name} {started.get(name)!r:.200}, this run has {value!r:.200}; "
                    "resume it with the same options, or write to another folder"
                )
        for folder in ("_errors", "_attempts"):
            (self.folder / folder).mkdir(exist_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Forget attempts, and remove what killed workers left half written."""
        for pattern in (".qrhead-*.tmp", "_errors/.qrhead-*.tmp", "_attempts/*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)

    def count_attempt(self, number: int) -> int:
        """Note in a file that a worker begins a shard; returns how often that happened in this run."""
        with self._attempts(number).open("ab") as file:
            file.write(b".")
            return file.tell()

    def forget_attempts(self, number: int) -> None:
        """Forget how often a shard was begun: it is finished."""
        self._attempts(number).unlink(missing_ok=True)

    def write_errors(self, number: int, errors: Sequence[Mapping[str, Any]]) -> None:
        """Write the records of a shard that could not be used; no file if there are none."""
        if errors:
            write_json_lines(self.errors(number), errors)
        else:
            self.errors(number).unlink(missing_ok=True)
