"""A data set of lists ranked from file to file: `qrhead rank-dataset`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qrhead_rag.examples import RawRecord
from qrhead_rag.files import replaced, write_json_lines
from qrhead_rag.first_stage import require_extra
from qrhead_rag.heads import HeadChoice, HeadSet, Mode
from qrhead_rag.list_records import ranking_row
from qrhead_rag.ray import RankedList, RankLists
from qrhead_rag.ray_pool import Pool
from qrhead_rag.ray_shards import Progress, run_shards
from qrhead_rag.ray_split import split
from qrhead_rag.selection import Selection


def rank_dataset(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    heads: HeadChoice = None,
    mode: Mode | None = None,
    selection: Selection | None = None,
    format: Literal["jsonl", "parquet"] | None = None,
    pool: Pool | None = None,
    shard_bytes: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Progress:
    """Rank every list of a data set; `list_records.py` has what a list and its ranking look like.

    The rankings of shard 12 are in `part-000012.jsonl`, in the order of the input. Lists that cannot be ranked are in
    `_errors/`, each with the reason. A run that was interrupted is gone on with by the same call.

    Args:
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the rankings.
        model: hub id or folder; None is the embedded model.
        heads: as in `QRRetriever`.
        mode: as in `QRRetriever`.
        selection: what to keep of each ranking; None keeps all.
        format: of the rankings; None is that of the first source. In Parquet ids are strings.
        pool: where; None is one actor on this machine.
        shard_bytes: bytes of input in a shard, which is redone as a whole where its actor dies.
        on_progress: called before the first report of an actor and after each.
        options: others of `RankLists` and `QRRetriever.from_pretrained` (dtype, device_map, tp_plan, batch_tokens …).

    Raises:
        FileNotFoundError, OSError, ValueError: what was given cannot be used; the message names it.
        RuntimeError: an actor failed in a way that is no list's fault.
    """
    heads = sent(heads)
    kept = (selection or Selection()).model_dump()
    lists = {"model": model, "heads": heads, "mode": mode, "selection": kept, **options}
    pool = pool or Pool()
    make, made_with = split(_Rankings, {"lists": lists}, options, pool)
    return run_shards(
        sources,
        out,
        make=make,
        options=made_with,
        settings={"command": "rank-dataset", **described(lists)},
        suffix=None if format is None else f".{format}",
        pool=pool,
        shard_bytes=shard_bytes,
        on_progress=on_progress,
    )


def sent(heads: HeadChoice) -> HeadChoice:
    """Heads as they reach other machines, which may not have the file."""
    return HeadSet.load(heads) if isinstance(heads, str | Path) and str(heads).endswith(".json") else heads


def described(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON, to compare a run with the one that it goes on with."""
    return {
        name: value.model_dump(mode="json")
        if isinstance(value, HeadSet)
        else json.loads(json.dumps(value, default=str))
        for name, value in options.items()
    }


class _Rankings:
    """Makes the rankings of a shard's lists."""

    def __init__(self, lists: Mapping[str, Any]) -> None:
        self._lists = RankLists(**lists)
        self._rows: list[dict[str, Any]] = []

    def begin(self) -> None:
        self._rows = []

    def add(self, file: str, records: Sequence[RawRecord]) -> tuple[list[str | None], int]:
        reasons: list[str | None] = []
        tokens = 0
        for record, found in zip(records, self._lists.rank_all([raw.value for raw in records]), strict=True):
            reasons.append(None if isinstance(found, RankedList) else found)
            if isinstance(found, RankedList):
                self._rows.append(ranking_row(found.record, found.ranking, file, record.line))
                tokens += found.tokens
        return reasons, tokens

    def write(self, path: Path) -> None:
        if path.suffix == ".parquet":
            _write_parquet(path, self._rows)
            return
        write_json_lines(path, self._rows)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    arrow, parquet = require_extra("pyarrow", "ray"), require_extra("pyarrow.parquet", "ray")
    # Written down, not guessed: a shard without a single ranking has the same columns as any other.
    schema = arrow.schema(
        {
            "id": arrow.string(),
            "ranking": arrow.list_(arrow.int64()),
            "scores": arrow.list_(arrow.float64()),
            "documents": arrow.list_(arrow.string()),
            "windowed": arrow.bool_(),
            "truncated": arrow.list_(arrow.int64()),
            "file": arrow.string(),
            "line": arrow.int64(),
        }
    )
    found = [
        {
            **row,
            "id": _utf8(row["id"]),
            "file": _utf8(row["file"]),
            "documents": [_utf8(one) for one in row["documents"]],
        }
        for row in rows
    ]
    with replaced(path) as whole:
        parquet.write_table(arrow.Table.from_pylist(found, schema), whole)


def _utf8(text: str | int | None) -> str | None:
    """A text as Parquet can hold it: JSON may bring lone surrogates."""
    return None if text is None else str(text).encode("utf-8", "replace").decode()
