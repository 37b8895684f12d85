"""What the lists of one retriever share: what they are read with, a cache, and the opening of the prompt."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.attention import QueryPrefix
from qrhead_rag.core.model_view import cache_bytes
from qrhead_rag.ranking.cache import ByteCache
from qrhead_rag.ranking.context import ListContext
from qrhead_rag.ranking.pieces import Piece
from qrhead_rag.ranking.stored import StoredPassages

_PREFIXES_KEPT = 64  # positions of the query, which follow the longest piece; each takes 0.9 MB in the embedded model


class Opening:
    """The opening of the prompt before passages that are read alone: run when it is first needed, then kept."""

    def __init__(self, context: ListContext) -> None:
        self._context = context
        self._cache: DynamicCache | None = None
        self._prefixes: OrderedDict[tuple[int, ...], QueryPrefix] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values, and of what follows it."""
        return cache_bytes(self._cache) + sum(prefix.nbytes for prefix in list(self._prefixes.values()))

    def cache(self) -> DynamicCache:
        """Its keys and values. Whoever calls it holds the context's lock, and does not change what it gets."""
        if self._cache is None:
            ids = self._context.tokenizer.opening(self._context.template)
            chunk = self._context.options.prefill_tokens
            self._cache = self._context.reader.prefill(torch.tensor([ids]), chunk=chunk)
        return self._cache

    def query_prefix(self, ids: Sequence[int], position: int) -> QueryPrefix:
        """The tokens that query parts at a position begin with, which are run after it once; the last few are kept."""
        key = position, *ids
        prefix = self._prefixes.setdefault(key, QueryPrefix(ids, position))
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > _PREFIXES_KEPT:
            self._prefixes.popitem(last=False)
        return prefix

    def clear(self) -> None:
        """Forget it, until it is needed again."""
        self._cache, self._prefixes = None, OrderedDict()


@dataclass(frozen=True)
class ListStore:
    """What the lists of one retriever share.

    Attributes:
        context: what they are read with.
        cache: under `listwise` lists that have been read; under the other modes passages, by their text, and of each
            list what the null query found. A list of the same texts refers to the same tensors.
        opening: of the prompt.
        stored: passages that were encoded in any process, where the retriever has a store.
        pieces: of passages, by text and number, for as long as the cache, a list or a thread holds them: what one
            thread has run, another does not run again.
    """

    context: ListContext
    cache: ByteCache
    opening: Opening
    stored: StoredPassages | None = None
    pieces: "WeakValueDictionary[tuple[str, int], Piece]" = field(default_factory=WeakValueDictionary)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory."""
        return self.cache.nbytes + self.opening.nbytes

    def clear(self) -> None:
        """Forget all that was read. Lists that are in use keep what they hold."""
        self.cache.clear()
        self.opening.clear()
        self.pieces.clear()


class HasStore(Protocol):
    """A QRRetriever, as far as lists are concerned."""

    _store: ListStore


def store_of(retriever: HasStore) -> ListStore:
    """What the lists of a retriever share. For this package and what measures it; no part of its public face."""
    return retriever._store
