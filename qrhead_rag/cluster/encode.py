"""A data set of documents encoded under `late`, from file to file: `qrhead encode-dataset`.

encode_dataset(["handbook/*.jsonl"], "encoded/")
EncodedPassages.load("encoded/", retriever).rank("When does the ferry leave?")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.rank import described, sent
from qrhead_rag.cluster.run import Progress, run_shards
from qrhead_rag.core.heads import HeadChoice
from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.passages import passage_of
from qrhead_rag.datasets.records import RawRecord
from qrhead_rag.ranking.retriever import QRRetriever


def encode_dataset(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    heads: HeadChoice = None,
    pool: Pool | None = None,
    shard_bytes: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Progress:
    """Encode every document of a data set (text, perhaps title and id; what else it has becomes metadata).

    Shard 12 is in `part-000012.safetensors`; `EncodedPassages.load` reads one, some or the whole folder as one list.
    Records that are no document are in `_errors/`, each with the reason. A run that was interrupted is gone on with by
    the same call.

    Args:
        sources: files, folders and glob patterns, .jsonl or .parquet.
        out: folder for the shards.
        model: hub id or folder; None is the embedded model.
        heads: as in `QRRetriever`, for the mode late.
        pool: where; None is one actor on this machine.
        shard_bytes: bytes of input in a shard.
        on_progress: called before the first report of an actor and after each.
        options: others of `QRRetriever.from_pretrained` (dtype, device_map, piece_tokens …).

    Raises:
        FileNotFoundError, OSError, ValueError: what was given cannot be used; the message names it.
        RuntimeError: an actor failed in a way that is no document's fault.
    """
    retriever = {"model": model, "heads": sent(heads), "mode": "late", **options}
    return run_shards(
        sources,
        out,
        make=_Encoded,
        options={"retriever": retriever},
        settings={"command": "encode-dataset", **described(retriever)},
        suffix=".safetensors",
        pool=pool or Pool(),
        shard_bytes=shard_bytes,
        on_progress=on_progress,
    )


class _Encoded:
    """Makes one encoded list of a shard's documents."""

    def __init__(self, retriever: Mapping[str, Any]) -> None:
        self._retriever = QRRetriever.from_pretrained(**retriever)
        self.begin()

    def begin(self) -> None:
        self._encoded = self._retriever.encode([])

    def add(self, file: str, records: Sequence[RawRecord]) -> tuple[list[str | None], int]:
        found = [_passage(record.value) for record in records]
        left = iter(self._encode([one for one in found if isinstance(one, Passage)]))
        reasons = [next(left) if isinstance(one, Passage) else one for one in found]
        used = [one for one, why in zip(found, reasons, strict=True) if isinstance(one, Passage) and why is None]
        return reasons, sum(self._retriever.count_tokens(passage.content) for passage in used)

    def _encode(self, passages: Sequence[Passage]) -> list[str | None]:
        """Take passages into the list, together or else each by itself; the reason for each that cannot be."""
        before = len(self._encoded)
        try:
            self._encoded.extend(passages)
            self._encoded.encode()
        except Exception as error:
            while len(self._encoded) > before:
                self._encoded.remove(before)
            if len(passages) > 1:
                return [self._encode([passage])[0] for passage in passages]
            # The document's fault or the model's? Where the model is at fault the run must stop.
            self._retriever.encode(["It runs."])
            return [f"{type(error).__name__}: {error}"]
        return [None] * len(passages)

    def write(self, path: Path) -> None:
        self._encoded.save(path)


def _passage(value: Any) -> Passage | str:
    try:
        return passage_of(value)
    except ValueError as error:
        return str(error)
