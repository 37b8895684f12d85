"""Scale-out on Ray Data: a batch actor that ranks lists. Needs the extra `ray`.

In a pipeline of your own, with the readers and writers of Ray Data:

    lists = ray.data.read_parquet("s3://bucket/lists/")  # columns query and documents
    ranked = lists.map_batches(
        RankLists,
        fn_constructor_kwargs={"model": "Qwen/Qwen2.5-7B-Instruct", "heads": "nq"},
        batch_format="pyarrow", batch_size=64, num_gpus=1, concurrency=8,
    )
    ranked.write_parquet("s3://bucket/ranked/")

`ray_rank.py` does the same from file to file, so that a run can be interrupted and goes on.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from qrhead_rag.core.passage import Passage
from qrhead_rag.core.selection import Selection
from qrhead_rag.datasets.bm25 import require_extra
from qrhead_rag.datasets.list_records import ListRecord, list_record
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
