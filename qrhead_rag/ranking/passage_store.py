"""A passage store: what `late` keeps of a passage, encoded once at ingestion and read by every process after.

    retriever = QRRetriever.from_pretrained(mode="late", store="chunks.db")

Passages are kept by their content and by what they were encoded with, so that nothing stale is read and retrievers of
several models can share a store.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, Union

import torch

from qrhead_rag.files import parse_json
from qrhead_rag.models.embedded import cache_folder
from qrhead_rag.ranking.byte_store import ByteStore, SqliteStore
from qrhead_rag.ranking.cache import content_key
from qrhead_rag.ranking.passage_bytes import FORMAT, DamagedValueError, from_bytes, to_bytes
from qrhead_rag.ranking.pieces import PassagePieces

StoreChoice: TypeAlias = Union[str, Path, Literal[True], ByteStore, "PassageStore"]
"""A file; True for `passages.db` in the user's cache folder; an object with mget, mset, mdelete and yield_keys."""

_PASSAGES, _SETTINGS = "passages/", "settings/"
_AT_ONCE = 256  # passages that are checked in one call
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class EncodedWith:
    """What passages are encoded with: all that their bytes depend on besides their text.

    Attributes:
        settings: by name; JSON.

    >>> EncodedWith({"model": "a"}).key("A text.") == EncodedWith({"model": "b"}).key("A text.")
    False
    """

    settings: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """The same for the same settings and format of values only."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:32]

    def as_json(self) -> str:
        """The settings and the format of values."""
        return json.dumps({"format": FORMAT, **self.settings}, sort_keys=True)

    def key(self, text: str) -> str:
        """The key of a passage."""
        return f"{_PASSAGES}{self.digest}/{content_key(text)}"

    @property
    def own_key(self) -> str:
        """The key of the settings, which a store keeps beside the passages for people to read."""
        return _SETTINGS + self.digest


@dataclass(frozen=True)
class StoredSettings:
    """The passages of a store that were encoded alike.

    Attributes:
        digest: of the settings; part of the passages' keys.
        settings: by name; empty where the store has lost them.
        passages: how many there are.
    """

    digest: str
    settings: Mapping[str, Any]
    passages: int


class ReadPassages(NamedTuple):
    """What a store gives for some passages.

    Attributes:
        passages: those that are stored, by text.
        damage: what is wrong with each stored value that cannot be used.
        encoded_alike: whether the store has ever kept a passage that was encoded with the same settings.
    """

    passages: dict[str, PassagePieces]
    damage: list[str]
    encoded_alike: bool


class PassageStore:
    """Encoded passages in a byte store: a SQLite file, or any object with mget, mset, mdelete and yield_keys.

    Threads can share it where they can share the byte store.

    Args:
        store: a file, made when it is first used; True for one in the user's cache folder; or a byte store, such as
            those of LangChain (`RedisStore`, `LocalFileStore` …).

    Raises:
        TypeError: something else.

    >>> from langchain_core.stores import InMemoryByteStore
    >>> from qrhead_rag import QRRetriever
    >>> store = PassageStore(InMemoryByteStore())
    >>> retriever = QRRetriever(model, tokenizer, heads=[(1, 0), (2, 3)], mode="late", store=store)
    >>> retriever.encode_to_store(["The keeper counts the ships.", "Bread is baked at dawn."])
    2
    >>> [(stored.passages, stored.settings["mode"]) for stored in store.contents()]
    [(2, 'late')]
    """

    def __init__(self, store: StoreChoice) -> None:
        if isinstance(store, PassageStore):
            store = store.byte_store
        if store is True:
            store = cache_folder() / "passages.db"
        if isinstance(store, str | Path):
            store = SqliteStore(store)
        missing = [name for name in ("mget", "mset", "mdelete", "yield_keys") if not hasattr(store, name)]
        if missing:
            raise TypeError(
                f"store is {type(store).__name__}, which has no {', '.join(missing)}; expected a path, True, or an "
                "object with mget, mset, mdelete and yield_keys, such as a ByteStore of LangChain"
            )
        self.byte_store: ByteStore = store
        self._has_settings_of: set[str] = set()

    @property
    def choice(self) -> str | ByteStore:
        """What makes an equal store: the file, or the byte store."""
        return str(self.byte_store.path) if isinstance(self.byte_store, SqliteStore) else self.byte_store

    @property
    def name(self) -> str:
        """The file, or the class of the byte store."""
        return self.choice if isinstance(self.choice, str) else type(self.choice).__name__

    def __repr__(self) -> str:
        return f"PassageStore({self.name!r})"

    def read(self, encoded_with: EncodedWith, texts: Sequence[str], device: torch.device) -> ReadPassages:
        """Those of some passages that are stored, in one `mget`.

        Args:
            encoded_with: what the retriever encodes passages with.
            texts: title and text of each passage, as the model reads them.
            device: where the keys are needed.

        Raises:
            OSError: the store cannot be read; a byte store may raise errors of its own.
        """
        keys = [encoded_with.key(text) for text in texts]
        settings, *values = self._mget([encoded_with.own_key, *keys])
        if settings is None:  # also where the store was deleted or pruned meanwhile
            self._has_settings_of.discard(encoded_with.digest)
        passages: dict[str, PassagePieces] = {}
        damage = []
        for text, key, value in zip(texts, keys, values, strict=True):
            if value is None:
                continue
            try:
                passages[text] = from_bytes(key, value, device)
            except DamagedValueError as error:
                damage.append(str(error))
        return ReadPassages(passages, damage, settings is not None)

    def write(self, encoded_with: EncodedWith, passages: Mapping[str, PassagePieces]) -> None:
        """Keep some passages, by text, and once what they were encoded with, in one `mset`.

        Raises:
            OSError: the store cannot be written; a byte store may raise errors of its own.
        """
        keys = {text: encoded_with.key(text) for text in passages}
        pairs = [(keys[text], to_bytes(keys[text], passage)) for text, passage in passages.items()]
        if encoded_with.digest not in self._has_settings_of:
            pairs.insert(0, (encoded_with.own_key, encoded_with.as_json().encode()))
        self.byte_store.mset(pairs)
        self._has_settings_of.add(encoded_with.digest)

    def contents(self) -> list[StoredSettings]:
        """How many passages there are of each model and its settings, those with most first.

        Raises:
            OSError: the store cannot be read.
        """
        counts = Counter(_digest_of(key) for key in self._keys(_PASSAGES))
        return [StoredSettings(digest, self._settings(digest), count) for digest, count in counts.most_common()]

    def nearest_difference(self, encoded_with: EncodedWith) -> list[str]:
        """The settings that differ from those in the store that are most like them; empty where it has none.

        Raises:
            OSError: the store cannot be read.
        """
        own = parse_json(encoded_with.as_json())
        keys = list(islice(self._keys(_SETTINGS), _AT_ONCE))
        others = [self._settings(key.removeprefix(_SETTINGS)) for key in keys]
        differences = [sorted(name for name in own if other.get(name) != own[name]) for other in others]
        return min(differences, key=len, default=[])

    def check(self) -> Iterator[tuple[int, list[str]]]:
        """Check all passages, some at a time: how many were checked, and the keys of those that are damaged.

        Raises:
            OSError: the store cannot be read.
        """
        all_keys = self._keys(_PASSAGES)
        while keys := list(islice(all_keys, _AT_ONCE)):
            pairs = zip(keys, self._mget(keys), strict=True)
            yield len(keys), [key for key, value in pairs if value is not None and not _is_whole(key, value)]

    def delete(self, keys: Sequence[str]) -> None:
        """Forget passages, by the keys that `check` gives; they are encoded again when they are next ranked.

        Raises:
            OSError: the store cannot be written.
        """
        if keys:  # Redis refuses to delete nothing
            self.byte_store.mdelete(keys)

    def delete_settings(self, digest: str) -> int:
        """Forget all passages that were encoded alike, such as those of a model that is no longer used.

        Args:
            digest: of the settings, as in `contents`.

        Returns:
            How many there were.

        Raises:
            OSError: the store cannot be written.
        """
        keys = list(self._keys(f"{_PASSAGES}{digest}/"))
        for start in range(0, len(keys), _AT_ONCE):
            self.byte_store.mdelete(keys[start : start + _AT_ONCE])
        self.byte_store.mdelete([_SETTINGS + digest])
        self._has_settings_of.discard(digest)
        return len(keys)

    def _keys(self, prefix: str) -> Iterator[str]:
        """The keys that begin with a prefix.

        Where there are none they are looked for among all keys: LangChain's RedisStore takes a prefix for a pattern.
        """
        keys = iter(self.byte_store.yield_keys(prefix=prefix))
        first = next(keys, None)
        if first is not None:
            yield first
            yield from keys
        else:
            yield from (key for key in self.byte_store.yield_keys() if key.startswith(prefix))

    def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        values = list(self.byte_store.mget(keys))
        if len(values) != len(keys):
            raise ValueError(f"mget of {self.name} gave {len(values)} values for {len(keys)} keys; expected one a key")
        return values

    def _settings(self, digest: str) -> Mapping[str, Any]:
        (value,) = self._mget([_SETTINGS + digest])
        try:
            return dict(parse_json(bytes(value or b"{}").decode()))
        except (TypeError, ValueError):
            return {}


def _digest_of(key: str) -> str:
    return key.removeprefix(_PASSAGES).partition("/")[0]


def _is_whole(key: str, value: bytes) -> bool:
    try:
        from_bytes(key, value, _CPU)
    except DamagedValueError:
        return False
    return True
