"""What has been read, kept for later within a bound in bytes, and the keys under which it is found again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol


class Sized(Protocol):
    """What a cache holds."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ...


class ByteCache:
    """The most recently used entries, within a bound in bytes. Not thread-safe: its owner holds a lock.

    >>> from torch import zeros
    >>> cache = ByteCache(limit=100)
    >>> for name in ("first", "second", "third"):
    ...     cache.put(name, zeros(10))  # 40 bytes each
    >>> [name for name, _ in cache], cache.nbytes
    (['third', 'second'], 80)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Keys and entries, the most recent first."""
        return ((key, entry) for key, (entry, _) in reversed(self._entries.items()))

    def get(self, key: str) -> Any:
        """The entry, which becomes the most recent; None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: str, entry: Sized) -> None:
        """Keep an entry, or take note of its new size, and forget the oldest ones that no longer fit.

        An entry that does not fit by itself is not kept, and costs no other its place; nor is one that holds nothing.
        """
        nbytes, before = entry.nbytes, self._entries.get(key, (None, 0))[1]
        if not 0 < nbytes <= self._limit:
            self.drop(key)
            return
        # No call stands between the entries and their sum, so that an interruption finds them in agreement.
        self._entries[key] = entry, nbytes
        self.nbytes += nbytes - before
        self._entries.move_to_end(key)
        while self.nbytes > self._limit:
            self.drop(next(iter(self._entries)))

    def drop(self, key: str) -> None:
        """Forget an entry, if it is there."""
        if key in self._entries:
            self.nbytes -= self._entries[key][1]
            del self._entries[key]

    def clear(self) -> None:
        """Forget everything."""
        self._entries, self.nbytes = OrderedDict(), 0


def content_key(*texts: str) -> str:
    """A key of some texts in order, the same for the same texts only."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
