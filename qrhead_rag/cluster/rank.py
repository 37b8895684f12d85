"""A data set of lists ranked on Ray Data. Needs the extra `ray`.

`rank_dataset` goes from file to file (`qrhead rank-dataset`), `RankLists` is a batch actor for a pipeline of your own:

    lists = ray.data.read_parquet("s3://bucket/lists/")  # columns query and documents
    ranked = lists.map_batches(
        RankLists,
        fn_constructor_kwargs={"model": "Qwen/Qwen2.5-7B-Instruct", "heads": "nq"},
        batch_format="pyarrow", batch_size=64, num_gpus=1, concurrency=8,
    )
    ranked.write_parquet("s3://bucket/ranked/")

From file to file a run can be interrupted and goes on. A list is a record as in `datasets/passages.py`, its ranking
another:

    {"id": 7, "ranking": [0, 1], "scores": [0.07, -0.01], "documents": [null, "b"], "windowed": false,
     "truncated": [], "file": "lists.jsonl", "line": 1}
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.run import Progress, run_shards
from qrhead_rag.core.heads import HeadChoice, HeadSet, Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.selection import Selection
from qrhead_rag.datasets.passages import ListRecord, list_record
from qrhead_rag.datasets.records import RawRecord
from qrhead_rag.extras import require_extra
from qrhead_rag.files import atomic_write, write_json_lines
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever


class RankedList(NamedTuple):
    """A list with its ranking, and the tokens of its query and documents."""

    record: ListRecord
    ranking: Ranking
    tokens: int


class RankLists:
    """Ranks batches of lists with one QRRetriever. `ray.data.Dataset.map_batches` makes one per actor.

    A batch is a pyarrow Table (`batch_format="pyarrow"`) with columns query and documents (strings, or structs of text,
    title, id). It comes back with three more: ranking (places of the kept documents), scores (in the order of ranking)
    and error, the reason why a list has neither; one bad list does not end the run.

    Args:
        model: as in `QRRetriever.from_pretrained`.
        selection: what to keep of each ranking: top_n, min_share, max_tokens, order; see `Selection`.
        options: the others of `QRRetriever.from_pretrained`. Each list is ranked as if it were alone, to the bit. Two
            options change what is rounded, and nothing else: `batch_tokens` runs documents of several lists through
            the model together, up to that many tokens; `cache_bytes` keeps documents for other lists that have them.

    Raises:
        OSError, ValueError: as `QRRetriever.from_pretrained`.
    """

    def __init__(
        self, model: str | Path | None = None, *, selection: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        self._selection = Selection(**(selection or {})).model_dump()
        self._together = options.get("batch_tokens")
        held = 0 if self._together is None else 2**30
        self._retriever = QRRetriever.from_pretrained(model, **{"cache_bytes": held, **options})
        if self._together is not None and self._retriever.mode == "listwise":
            raise ValueError(
                f"batch_tokens={self._together} means nothing to the mode listwise, which runs one list at a time; "
                "leave it out, or use independent or late"
            )

    def __call__(self, lists: Any) -> Any:
        """The batch with its columns ranking, scores and error.

        Raises:
            TypeError: not a pyarrow Table.
        """
        arrow = require_extra("pyarrow", "ray")
        if not isinstance(lists, arrow.Table):
            raise TypeError(f'a batch is {type(lists).__name__}; expected a Table: map_batches(batch_format="pyarrow")')
        found = self.rank_all(lists.to_pylist())
        rankings = [one.ranking if isinstance(one, RankedList) else () for one in found]
        places = arrow.array([[ranked.index for ranked in one] for one in rankings], arrow.list_(arrow.int64()))
        scores = arrow.array([[ranked.score for ranked in one] for one in rankings], arrow.list_(arrow.float64()))
        errors = arrow.array([one if isinstance(one, str) else None for one in found], arrow.string())
        return lists.append_column("ranking", places).append_column("scores", scores).append_column("error", errors)

    def rank_all(self, values: Sequence[Any]) -> list[RankedList | str]:
        """The ranking of every list (objects with query and documents, perhaps id), or the reason why it has none.

        Raises:
            Exception: what the model raises also on a list that is known to be good.
        """
        found: list[RankedList | str] = []
        for group in self._groups([self._parsed(value) for value in values]):
            if self._together is not None:
                self._run_together(
                    [document for one in group if not isinstance(one, str) for document in one[0].documents]
                )
            found += [one if isinstance(one, str) else self._ranked(*one) for one in group]
        return found

    def _run_together(self, documents: Sequence[Passage]) -> None:
        """Run documents into the retriever's cache, where the lists that have them find them."""
        with suppress(Exception):  # whatever is wrong is found again in its own list
            encoded = self._retriever.encode(documents)
            if encoded.nbytes > self._retriever.options.cache_bytes:
                self._together = None  # run and forgotten again: nothing is won

    def _parsed(self, value: Any) -> tuple[ListRecord, int] | str:
        try:
            record = list_record(value)
            texts = [record.query, *(document.content for document in record.documents)]
            return record, sum(map(self._retriever.count_tokens, texts))
        except (ValueError, TypeError) as error:
            return str(error)

    def _groups(self, lists: list[tuple[ListRecord, int] | str]) -> Iterator[list[tuple[ListRecord, int] | str]]:
        """Lists that run together, in their order."""
        group: list[tuple[ListRecord, int] | str] = []
        tokens = 0
        for one in lists:
            size = 0 if isinstance(one, str) else one[1]
            if group and tokens + size > (self._together or 0):
                yield group
                group, tokens = [], 0
            group.append(one)
            tokens += size
        yield group

    def _ranked(self, record: ListRecord, tokens: int) -> RankedList | str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # `windowed` and `truncated` say it
                return RankedList(
                    record, self._retriever.rank(record.query, record.documents, **self._selection), tokens
                )
        except (ValueError, TypeError, FloatingPointError) as error:
            return str(error)
        except Exception as error:
            # The list's fault or the model's? Where the model is at fault no list can be ranked, and the run must stop.
            self._retriever.rank("Does it run?", ["It runs.", "It does not."])
            return f"{type(error).__name__}: {error}"


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
        options: others of `RankLists` and `QRRetriever.from_pretrained` (dtype, device_map, batch_tokens …).

    Raises:
        FileNotFoundError, OSError, ValueError: what was given cannot be used; the message names it.
        RuntimeError: an actor failed in a way that is no list's fault.
    """
    heads = sent(heads)
    kept = (selection or Selection()).model_dump()
    lists = {"model": model, "heads": heads, "mode": mode, "selection": kept, **options}
    return run_shards(
        sources,
        out,
        make=_Rankings,
        options={"lists": lists},
        settings={"command": "rank-dataset", **described(lists)},
        suffix=None if format is None else f".{format}",
        pool=pool or Pool(),
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
    with atomic_write(path) as whole:
        parquet.write_table(arrow.Table.from_pylist(found, schema), whole)


def _utf8(text: str | int | None) -> str | None:
    """A text as Parquet can hold it: JSON may bring lone surrogates."""
    return None if text is None else str(text).encode("utf-8", "replace").decode()


def ranking_row(record: ListRecord, ranking: Ranking, file: str, line: int) -> dict[str, Any]:
    """What is written for a ranked list.

    Returns:
        id: the list's own.
        ranking: places of the kept documents in the list, from 0, in the order asked for.
        scores: their scores, in the same order; they compare within this list only.
        documents: their ids, in the same order; None for one that has none.
        windowed: whether the list was ranked in sliding windows.
        truncated: places of kept documents of which only the beginning was read.
        file, line: where the list stands in the input, so that lists without an id are found again.
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
