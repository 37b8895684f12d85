"""The passage store as one retriever uses it: a ranking never fails by it, and no query waits twice for a dead one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Self, TypeVar

import torch
from transformers import PreTrainedModel

from qrhead_rag.ranking.context import ListContext
from qrhead_rag.ranking.passage_store import EncodedWith, PassageStore
from qrhead_rag.ranking.pieces import PassagePieces
from qrhead_rag.ranking.warn import warn_caller

_PAUSE = 60.0  # seconds that a store which failed is left alone

_T = TypeVar("_T")


@dataclass
class StoredPassages:
    """The passages of a store that one retriever can use.

    A store that cannot be reached, and a value that is damaged, fail no ranking: the passages are encoded as if they
    were not stored, and a warning says so once.

    Attributes:
        passage_store: the store.
        encoded_with: what the retriever encodes passages with.
        device: where it needs their keys.
        must_be_written: whether a store that cannot be written is an error, as it is for ingestion.
        written: passages that were stored.
    """

    passage_store: PassageStore
    encoded_with: EncodedWith
    device: torch.device
    must_be_written: bool = False
    written: int = 0
    _paused_until: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    @classmethod
    def of_context(cls, context: ListContext, model: PreTrainedModel, passage_store: PassageStore) -> Self:
        """The passages that were encoded as a retriever encodes them.

        Raises:
            ValueError: its mode keeps too much for a store.
        """
        if context.mode != "late":
            raise ValueError(
                f"mode is {context.mode!r} and store {passage_store.name!r}; expected mode 'late', the one that keeps "
                "little enough of a passage for a store: name it, or leave store= out"
            )
        with context.lock:
            return cls(passage_store, context.encoded_with(model), context.reader.device)

    def read(self, texts: Sequence[str]) -> dict[str, PassagePieces]:
        """Those of some passages that are stored, by text."""
        name = self.passage_store.name
        stored = self._try("read", lambda: self.passage_store.read(self.encoded_with, texts, self.device))
        if stored is None:
            return {}
        if stored.damage:
            self._tell("damage", f"{name} has damaged passages ({stored.damage[0]}); they are encoded again")
        if not stored.encoded_alike and "others" not in self._told:
            different = self._try("read", lambda: self.passage_store.nearest_difference(self.encoded_with))
            self._told.add("others")
            if different:
                warn_caller(
                    f"{name} has passages, but none that were encoded with this retriever's {', '.join(different)}; "
                    "they are encoded anew and kept beside the others (`qrhead store stats` lists what there is)"
                )
        return stored.passages

    def write(self, passages: Mapping[str, PassagePieces]) -> None:
        """Keep some passages, by text.

        Raises:
            OSError: the store cannot be written, where it must be.
        """

        def write() -> bool:
            self.passage_store.write(self.encoded_with, passages)
            return True

        if not passages:
            return
        if write() if self.must_be_written else self._try("written", write):
            self.written += len(passages)

    def _try(self, what: str, call: Callable[[], _T]) -> _T | None:
        """What a call of the store gives; None, with a warning, where it fails, and for a while after."""
        if monotonic() < self._paused_until.get(what, 0.0):
            return None
        try:
            return call()
        except Exception as error:  # each byte store has errors of its own
            self._paused_until[what] = monotonic() + _PAUSE
            self._tell(
                what, f"{self.passage_store.name} cannot be {what} ({error}); passages are encoded as without a store"
            )
            return None

    def _tell(self, subject: str, message: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            warn_caller(message)
