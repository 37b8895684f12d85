"""The folder that a run over shards writes: a file a shard, so that what is finished is seen and never done again.

part-000012.jsonl           what was made of shard 12; it appears whole, and last of all that the shard leaves
_errors/part-000012.jsonl   its records that could not be used, each with the reason
_attempts/part-000012.json  where in the shard its worker stands, while it is being worked on
_run.json                   what the run was begun with: the same command goes on with it, another is refused
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qrhead_rag.files import parse_json, write_json_lines, write_text

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
