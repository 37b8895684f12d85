"""A key-value store of LlamaIndex as a store of encoded passages."""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence

from llama_index.core.storage.kvstore.types import BaseKVStore


class KVByteStore:
    """Makes any BaseKVStore (Redis, MongoDB, Postgres, DynamoDB …) serve as `store=`.

    Values are kept as base64 in documents with one field, since those stores hold JSON: a third more bytes than in a
    file. Listing keys reads the whole collection in most of them.

    Args:
        kvstore: of LlamaIndex.
        collection: the collection, table or namespace within it.

    >>> from llama_index.core.storage.kvstore import SimpleKVStore
    >>> store = KVByteStore(SimpleKVStore())
    >>> store.mset([("ship", b"encoded")])
    >>> store.mget(["fog", "ship"])
    [None, b'encoded']
    """

    def __init__(self, kvstore: BaseKVStore, collection: str = "qrhead_passages") -> None:
        self._kvstore = kvstore
        self._collection = collection

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, in their order; None where there is none, or something else."""
        documents = [self._kvstore.get(key, collection=self._collection) for key in keys]
        return [None if document is None else _value(document) for document in documents]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store pairs; a key that was there gets its new value."""
        documents = [(key, {"value": b64encode(value).decode()}) for key, value in key_value_pairs]
        self._kvstore.put_all(documents, collection=self._collection)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, those that are there."""
        for key in keys:
            self._kvstore.delete(key, collection=self._collection)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with a prefix."""
        return (key for key in self._kvstore.get_all(collection=self._collection) if key.startswith(prefix or ""))


def _value(document: dict[str, object]) -> bytes:
    try:
        return b64decode(str(document["value"]), validate=True)
    except (KeyError, ValueError):
        return b""  # no value of this class: read as a damaged passage, which is encoded again
