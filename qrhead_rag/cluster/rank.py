"""A data set of lists ranked on Ray Data. Needs the extra `ray`.

`rank_dataset` goes from file to file (`qrhead rank-dataset`), `RankLists` is a batch actor for a pipeline of your own:

    lists = ray.data.read_parquet("s3://bucket/lists/")  # columns query and documents
    ranked = lists.map_batches(
        RankLists,
        fn_constructor_kwargs={"model": "Qwen/Qwen2.5-7B-Instruct", "heads": "nq"},
        batch_format="pyarrow", batch_size=64, num_gpus=1, concurrency=8,
    )
    ranked.write_parquet("s3://bucket/ranked/")

An interrupted run from file to file is resumed. A list is a record as in `datasets/passages.py`, its ranking another:

    {"id": 7, "ranking": [0, 1], "scores": [0.07, -0.01], "documents": [null, "b"], "windowed": false,
     "truncated": [], "file": "lists.jsonl", "line": 1}
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.run import Made, Progress, run_shards
from qrhead_rag.core.heads import HeadChoice, Mode
from qrhead_rag.core.selection import Selection
from qrhead_rag.datasets.passages import ListRecord, list_record
from qrhead_rag.datasets.records import RawRecord
from qrhead_rag.extras import require_extra
from qrhead_rag.files import atomic_write, write_json_lines
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever

_ERRORS_OF_A_LIST = (ValueError, TypeError, FloatingPointError, torch.OutOfMemoryError)


class RankedList(NamedTuple):
    """A list with its ranking, and the tokens of its query and documents."""

    record: ListRecord
    ranking: Ranking
    tokens: int


class RankLists:
    """Ranks batches of lists with one QRRetriever. `ray.data.Dataset.map_batches` makes one per actor.

    A batch is a pyarrow Table (`batch_format="pyarrow"`) with columns query and documents (strings, or structs of text,
    title, id). It comes back with three more: ranking (indices of the kept documents), scores (in the order of ranking)
    and error, the reason why a list has neither. A bad list does not end the run.

    Args:
        model: as in `QRRetriever.from_pretrained`.
        selection: what to keep of each ranking: top_n, min_share, max_tokens, order; see `Selection`.
        options: others of `QRRetriever.from_pretrained`. Each list is ranked as if it were alone, to the bit, unless
            `cache_bytes` keeps documents for other lists that contain them: then scores may differ by rounding.

    Raises:
        OSError, ValueError: as `QRRetriever.from_pretrained`.
    """

    def __init__(
        self, model: str | Path | None = None, *, selection: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        self._selection = Selection(**(selection or {})).model_dump()
        self._retriever = QRRetriever.from_pretrained(model, **{"cache_bytes": 0, **options})

    def __call__(self, lists: Any) -> Any:
        """The batch with its columns ranking, scores and error.

        Raises:
            TypeError: not a pyarrow Table.
        """
        arrow = require_extra("pyarrow", "ray")
        if not isinstance(lists, arrow.Table):
            raise TypeError(f'a batch is {type(lists).__name__}; expected a Table: map_batches(batch_format="pyarrow")')
        results = [self.rank_list(value) for value in lists.to_pylist()]
        rankings = [result.ranking if isinstance(result, RankedList) else () for result in results]
        indices = arrow.array([[ranked.index for ranked in r] for r in rankings], arrow.list_(arrow.int64()))
        scores = arrow.array([[ranked.score for ranked in r] for r in rankings], arrow.list_(arrow.float64()))
        errors = arrow.array([result if isinstance(result, str) else None for result in results], arrow.string())
        return lists.append_column("ranking", indices).append_column("scores", scores).append_column("error", errors)

    def rank_list(self, value: Any) -> RankedList | str:
        """The ranking of a list (an object with query and documents, optional id), or the reason why it has none."""
        try:
            record = list_record(value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # `windowed` and `truncated` tell the same
                ranking = self._retriever.rank(record.query, record.documents, **self._selection)
            texts = [record.query, *(document.content for document in record.documents)]
            return RankedList(record, ranking, sum(map(self._retriever.count_tokens, texts)))
        except _ERRORS_OF_A_LIST as error:
            return str(error)


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
    """Rank every list of a data set; the head of this file says what a list and its ranking look like.

    The rankings of shard 12 are in `part-000012.jsonl`, in the order of the input. Lists that cannot be ranked are in
    `_errors/`, each with the reason, and so are shards that failed twice. The same call resumes an interrupted run.

    Args:
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the rankings.
        model: hub id or folder; None is the embedded model.
        heads: as in `QRRetriever`.
        mode: as in `QRRetriever`.
        selection: what to keep of each ranking; None keeps all.
        format: of the rankings; None is that of the first source. In Parquet ids are strings.
        pool: where; None is one actor on this machine.
        shard_bytes: bytes of input in a shard, which is redone as a whole if its actor dies.
        on_progress: called before the first shard and after each.
        options: others of `QRRetriever.from_pretrained` (dtype, device_map, batch_tokens …); see `RankLists`.

    Raises:
        FileNotFoundError, OSError, ValueError: an argument cannot be used; the message names it.
    """
    return run_shards(
        "rank-dataset",
        sources,
        out,
        _Ranker,
        {"model": model, "heads": heads, "mode": mode, "selection": (selection or Selection()).model_dump(), **options},
        suffix=None if format is None else f".{format}",
        pool=pool,
        shard_bytes=shard_bytes,
        on_progress=on_progress,
    )


class _Ranker:
    """Makes the rankings of the lists of a shard."""

    def __init__(self, **options: Any) -> None:
        self._lists = RankLists(**options)

    def __call__(self, records: Sequence[RawRecord], file: str) -> Made:
        results = [self._lists.rank_list(record.value) for record in records]
        rows = [
            ranking_row(result.record, result.ranking, file, record.line)
            for record, result in zip(records, results, strict=True)
            if isinstance(result, RankedList)
        ]
        reasons = [result if isinstance(result, str) else None for result in results]
        tokens = sum(result.tokens for result in results if isinstance(result, RankedList))
        return Made(reasons, tokens, partial(_write_rankings, rows))


def _write_rankings(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        write_json_lines(path, rows)


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    arrow, parquet = require_extra("pyarrow", "ray"), require_extra("pyarrow.parquet", "ray")
    # Not inferred, so that a shard without a ranking has the same columns as any other.
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
    values = [
        {
            **row,
            "id": _utf8(row["id"]),
            "file": _utf8(row["file"]),
            "documents": [_utf8(identifier) for identifier in row["documents"]],
        }
        for row in rows
    ]
    with atomic_write(path) as whole:
        parquet.write_table(arrow.Table.from_pylist(values, schema), whole)


def _utf8(text: str | int | None) -> str | None:
    """A text that Parquet can hold: JSON may contain lone surrogates."""
    return None if text is None else str(text).encode("utf-8", "replace").decode()


def ranking_row(record: ListRecord, ranking: Ranking, file: str, line: int) -> dict[str, Any]:
    """The record that is written for a ranked list.

    Returns:
        id: the list's own.
        ranking: indices of the kept documents in the list, in the order asked for.
        scores: their scores, in the same order; comparable within this list only.
        documents: their ids, in the same order; None for a document without one.
        windowed: whether the list was ranked in sliding windows.
        truncated: indices of kept documents of which only the beginning was read.
        file, line: where the list is in the input, for lists without an id.
    """
    return {
        "id": record.id,
        "ranking": [ranked.index for ranked in ranking],
        "scores": [ranked.score for ranked in ranking],
        "documents": [ranked.passage.id for ranked in ranking],
        "windowed": ranking.windowed,
        "truncated": list(ranking.truncated),
        "file": file,
        "line": line,
    }
