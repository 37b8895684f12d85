"""A data set of documents encoded under `late`, from file to file: `qrhead encode-dataset`.

encode_dataset(["handbook/*.jsonl"], "encoded/")
EncodedPassages.load("encoded/", retriever).rank("When does the ferry leave?")

encode_dataset(["handbook/*.jsonl"], "progress/", store="handbook.db")  # for lists of any of them
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.run import Made, Progress, run_shards
from qrhead_rag.core.heads import HeadChoice
from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.passages import passage_of
from qrhead_rag.datasets.records import RawRecord
from qrhead_rag.files import write_text
from qrhead_rag.ranking.retriever import QRRetriever


def encode_dataset(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    heads: HeadChoice = None,
    store: str | Path | None = None,
    pool: Pool | None = None,
    shard_bytes: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Progress:
    """Encode every document of a data set (text, optional title and id; other fields become metadata).

    Shard 12 is in `part-000012.safetensors`; `EncodedPassages.load` reads one, some or the whole folder as one list.
    Records that are no document, and shards that failed twice, are in `_errors/`, each with the reason. The same call
    resumes an interrupted run.

    Args:
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the shards.
        model: hub id or folder; None is the embedded model.
        heads: as in `QRRetriever`, for the mode late.
        store: a file of a passage store, which then gets what is encoded; a shard is a note of what was done. All
            actors write to it, so they have to be on its machine.
        pool: where; None is one actor on this machine.
        shard_bytes: bytes of input in a shard.
        on_progress: called before the first shard and after each.
        options: others of `QRRetriever.from_pretrained` (dtype, device_map, piece_tokens …).

    Raises:
        FileNotFoundError, OSError, ValueError: an argument cannot be used; the message names it.
    """
    return run_shards(
        "encode-dataset",
        sources,
        out,
        _Encoder,
        {"model": model, "heads": heads, "mode": "late", **options, **({} if store is None else {"store": str(store)})},
        suffix=".safetensors" if store is None else ".json",
        pool=pool,
        shard_bytes=shard_bytes,
        on_progress=on_progress,
    )


class _Encoder:
    """Makes one encoded list of the documents of a shard, or puts them into a store."""

    def __init__(self, model: str | None, **options: Any) -> None:
        self._retriever = QRRetriever.from_pretrained(model, **options)

    def __call__(self, records: Sequence[RawRecord], file: str) -> Made:
        passages: list[Passage] = []
        reasons: list[str | None] = []
        for record in records:
            try:
                passages.append(passage_of(record.value))
                reasons.append(None)
            except ValueError as error:
                reasons.append(str(error))
        tokens = sum(self._retriever.count_tokens(passage.content) for passage in passages)
        if self._retriever.store is None:
            return Made(reasons, tokens, self._retriever.encode(passages).save)
        note = {"passages": len(passages), "encoded": self._retriever.encode_to_store(passages)}
        return Made(reasons, tokens, lambda path: write_text(path, json.dumps(note) + "\n"))
