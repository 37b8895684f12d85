"""Retrievers loaded by name: shared by all who ask with equal options, and kept for a while after the last of them.

A component that is made for each request would otherwise load its model each time.
"""

import gc
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

from qrhead_rag.models.shared import check_fork, new_lock
from qrhead_rag.ranking.cache import ByteCache
from qrhead_rag.ranking.passage_store import PassageStore, StoreChoice
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.store import store_of

KEEP_BYTES = 4 * 2**30
"""What retrievers that nothing else refers to may hold together: their weights and what they have read."""
KEEP_SECONDS = 600.0
"""How long they stay after they were last asked for, at least; at most twice as long."""


class LoadedRetrievers:
    """Loads each retriever once, and keeps those that were asked for last.

    Args:
        keep_bytes: what is kept may hold this much; a retriever that does not fit by itself is not kept.
        keep_seconds: what is kept is let go of when nobody has asked for it this long.

    >>> loaded = LoadedRetrievers()
    >>> loaded.release()
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS) -> None:
        self._lock = new_lock()
        self._by_options: WeakValueDictionary[str, QRRetriever] = WeakValueDictionary()
        self._kept = ByteCache(keep_bytes)
        self._keep_seconds = keep_seconds
        self._timer: threading.Timer | None = None

    def get(self, options: Mapping[str, Any]) -> QRRetriever:
        """The retriever that `QRRetriever.from_pretrained` loads with these options, loaded by the first call.

        Raises:
            OSError, ValueError: as `QRRetriever.from_pretrained`.
        """
        with check_fork(self._lock):
            retriever = self._by_options.get(_key(options))
            if retriever is None:
                retriever = QRRetriever.from_pretrained(**options)
                # Also under its full options, which an equal component reads from its serialized form.
                for known in (options, {**options, **retriever.loading_options()}):
                    self._by_options.setdefault(_key(known), retriever)
            self._kept.put(str(id(retriever)), _Kept(retriever, monotonic()))
            self._start_timer()
        return retriever

    def release(self, unused_for: float = 0.0) -> None:
        """Let go of what nobody has asked for in so many seconds. What is in use elsewhere stays, and stays shared."""
        with check_fork(self._lock):
            now = monotonic()
            for name in [name for name, kept in self._kept if now - kept.asked_for >= unused_for]:
                self._kept.drop(name)
        gc.collect()  # models of transformers refer to themselves

    def _start_timer(self) -> None:
        if len(self._kept) and not (self._timer and self._timer.is_alive()):
            self._timer = threading.Timer(self._keep_seconds, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        self.release(unused_for=self._keep_seconds)
        with self._lock:
            self._timer = None
            self._start_timer()


@dataclass(frozen=True)
class _Kept:
    retriever: QRRetriever
    asked_for: float

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and of what the retriever has read."""
        return int(self.retriever.model.get_memory_footprint()) + store_of(self.retriever).nbytes


def _key(options: Mapping[str, Any]) -> str:
    """Equal for equal options, unless the files that they name were written anew."""
    known = {**options, "store": _store_key(options.get("store"))}
    return repr([*sorted(known.items()), *(_files(options.get(name)) for name in ("model", "heads"))])


def _store_key(store: StoreChoice | None) -> str | int | None:
    """The whole path of a file, whatever folder the process is in; of a byte store, which one it is."""
    if store is None:
        return None
    choice = PassageStore(store).choice
    return choice if isinstance(choice, str) else id(choice)


def _files(path: object) -> list[tuple[str, int, int]]:
    """Name, time and size of the file, or of those in the folder; none where it is the name of something else."""
    if not isinstance(path, str | Path):
        return []
    files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()]
