"""What every list of one retriever is encoded with, and the reading that a mode makes of a list.

The modes differ in how documents are run through the model (`listwise.py`, `separate.py`); calibration, mask,
aggregation, truncation and errors are the same for all and start from a `Reading`.
"""

import hashlib
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from qrhead_rag.attention import PREFILL_TOKENS, HeadReader
from qrhead_rag.explain import Evidence
from qrhead_rag.heads import Head, Mode
from qrhead_rag.passage import Passage
from qrhead_rag.prompt import NULL_QUERY, PromptTemplate, PromptTokenizer
from qrhead_rag.scoring import document_scores, masked, pool_pieces

Layout: TypeAlias = Literal["given", "reversed"]

_QUERY_RESERVE = 128  # tokens kept free for a query that is not known yet


class ReadingOptions(BaseModel):
    """How lists are read. Validated once, where a retriever is made.

    Attributes:
        layout: "given" or "reversed": how a list is laid into the prompt (`listwise`).
        instruction: replaces the late instruction (another task, another language).
        context_length: tokens that a prompt may have; by default what the model's configuration says.
        window: documents in a sliding window, where a list is longer than the context; by default as many as fit.
        stride: documents that the window moves by; by default half a window.
        prefill_tokens: tokens run through the model at a time; bounds activation memory.
        piece_tokens: under `independent` and `late`, documents longer than this are encoded in pieces of at most this
            many tokens, cut at sentence ends, and the scores of the best three pieces are added up; None leaves them
            whole.
        batch_tokens: under `independent` and `late`, tokens of documents, padding included, that run through the model
            together; bounds activation memory, and keeps an accelerator busy.
        cache_bytes: what the retriever may keep of lists and passages it has read, in bytes; 0 keeps nothing.
        key_dtype: how `late` stores keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layout: Layout = "given"
    instruction: str | None = Field(default=None, min_length=1)
    context_length: int | None = Field(default=None, ge=1)
    window: int | None = Field(default=None, ge=2)
    stride: int | None = Field(default=None, ge=1)
    prefill_tokens: int = Field(default=PREFILL_TOKENS, ge=1)
    piece_tokens: int | None = Field(default=256, ge=16)
    batch_tokens: int = Field(default=4096, ge=1)
    cache_bytes: int = Field(default=2**30, ge=0)
    key_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise ValueError(
                f"stride={self.stride} leaps over documents of window={self.window}; expected at most the window"
            )
        return self


class Sized(Protocol):
    """What a cache holds."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ...


class ByteCache:
    """The most recently used entries, within a bound in bytes. Not thread-safe: its owner holds a lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Any:
        """The entry, which becomes the most recent; None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: str, entry: Sized) -> None:
        """Keep an entry, or take note of its new size, and forget the oldest ones that no longer fit.

        An entry that does not fit by itself is not kept, and costs no other its place.
        """
        nbytes, before = entry.nbytes, self._entries.get(key, (None, 0))[1]
        if nbytes > self._limit:
            if before:
                self.nbytes -= before
                del self._entries[key]
            return
        # No call stands between the entries and their sum, so that an interruption finds them in agreement.
        self._entries[key] = entry, nbytes
        self.nbytes += nbytes - before
        self._entries.move_to_end(key)
        while self.nbytes > self._limit:
            oldest = next(iter(self._entries))
            self.nbytes -= self._entries[oldest][1]
            del self._entries[oldest]

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


class ListTooLongError(ValueError):
    """The list and its query are longer than the model's context."""


@dataclass(frozen=True)
class Encoder:
    """What every list of one retriever is encoded with.

    Attributes:
        reader: reads the selected heads.
        tokenizer: makes prompts.
        template: what stands around the documents.
        heads: (layer, head) of each row that the reader gives.
        mode: how the documents are run through the model.
        options: how lists are read.
        context_length: tokens that a prompt may have; None knows no limit.
        lock: held while tokenizing and running the model.
        identity: names model, heads and mode in saved files.
        kept: lists and passages that have been read.
    """

    reader: HeadReader
    tokenizer: PromptTokenizer
    template: PromptTemplate
    heads: tuple[Head, ...]
    mode: Mode
    options: ReadingOptions
    context_length: int | None
    lock: threading.RLock
    identity: dict[str, Any]
    kept: ByteCache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", ByteCache(self.options.cache_bytes))

    def file_identity(self) -> dict[str, Any]:
        """What has to be the same where a saved list is read."""
        return self.identity | {
            "key_dtype": self.options.key_dtype,
            "piece_tokens": self.options.piece_tokens,
            "opening": self.tokenizer.opening(self.template),
        }

    def room(self, query: str | None) -> float:
        """Tokens that a prompt has left for documents; with no query known, some are kept free for one.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        if self.context_length is None:
            return float("inf")
        around = len(self.tokenizer.prompt(self.template, [], query or NULL_QUERY).ids)
        reserve = min(_QUERY_RESERVE, self.context_length // 4) if query is None else 0
        room = self.context_length - around - reserve
        if query is not None and room <= self.size("") + 2:
            raise ListTooLongError(
                f"the query with the prompt around it is {around} tokens long, the context of the model "
                f"{self.context_length}, which leaves no room for documents; use a shorter query"
            )
        return room

    def size(self, content: str) -> int:
        """Tokens that a document takes in the prompt, its label and separator included; an upper bound."""
        return self.tokenizer.count(f"[1000] {content}") + self.tokenizer.count(self.template.separator)

    def needs_windows(self, passages: Sequence[Passage], query: str) -> bool:
        """Whether several documents and the query do not fit one listwise prompt.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        room = self.room(query)
        contents = [passage.content for passage in passages if passage.content.strip()]
        # `size` saves most lists from being laid out.
        if self.context_length is None or len(contents) < 2 or sum(map(self.size, contents)) <= room:
            return False
        return len(self.tokenizer.prompt(self.template, contents, query).ids) > self.context_length

    def clip(self, contents: Sequence[str], limit: float) -> tuple[list[str], set[int]]:
        """Documents cut to `limit` tokens each, label included, and the places of those that had to be."""
        clipped, places = list(contents), set()
        for place, content in enumerate(contents):
            if self.size(content) > limit:
                clipped[place] = self.tokenizer.cut(content, max(1, int(limit) - self.size("") - 2))
                places.add(place)
        return clipped, places


@dataclass(frozen=True)
class Reading:
    """What one query found in one list.

    Attributes:
        calibrated: c(t) of each head. # (heads, tokens)
        piece_of: number of the piece that each token belongs to, or OUTSIDE. # (tokens,)
        document_of_piece: place in the list of the document of each piece. # (pieces,)
        offsets: characters of each token, counted from its document's label.
        labels: label of each document that was read, by its place.
    """

    calibrated: Tensor
    piece_of: Tensor
    document_of_piece: Tensor
    offsets: Sequence[tuple[int, int]]
    labels: dict[int, str]

    def head_scores(self, num_documents: int) -> Tensor:
        """s(d) of each head alone, masked by itself. # (heads, documents)"""
        return self._scores(self.calibrated, num_documents)[0]

    def scores(self, num_documents: int) -> tuple[Tensor, list[Evidence | None]]:
        """s(d) of the selected heads together, and what each document's tokens contributed. # (documents,)"""
        scores, contributions = self._scores(self.calibrated.sum(dim=0), num_documents)
        found: list[Evidence | None] = [None] * num_documents
        for place, tokens in self._tokens_of_documents().items():
            found[place] = Evidence(
                contributions[tokens], [self.offsets[token] for token in tokens], self.labels[place]
            )
        return scores, found

    def _scores(self, calibrated: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
        num_pieces = len(self.document_of_piece)
        contributions = masked(calibrated, self.piece_of, num_pieces)  # (..., tokens)
        of_pieces = document_scores(contributions, self.piece_of, num_pieces)  # (..., pieces)
        scores, counted = pool_pieces(of_pieces, self.document_of_piece, num_documents)
        counted = torch.cat([counted, torch.zeros_like(counted[..., :1])], dim=-1)  # OUTSIDE is -1: the last
        return scores, contributions.where(counted[..., self.piece_of], 0.0)

    def _tokens_of_documents(self) -> dict[int, list[int]]:
        tokens: dict[int, list[int]] = {place: [] for place in self.labels}
        documents = self.document_of_piece.tolist()
        for token, piece in enumerate(self.piece_of.tolist()):
            if piece >= 0:
                tokens[documents[piece]].append(token)
        return tokens


class EncodedList(Protocol):
    """One list as one mode holds it. Every call is made under the encoder's lock."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held for the list."""
        ...

    @property
    def truncated(self) -> frozenset[int]:
        """Places of the documents that are read only in part."""
        ...

    def set_passages(self, passages: Sequence[Passage], query: str | None) -> None:
        """Make this the list; what was run for an earlier list serves again where it can."""
        ...

    def run(self, show_progress: bool = False) -> None:
        """Run the documents that have not been run."""
        ...

    def read(self, queries: Sequence[str]) -> list[Reading]:
        """c(t) of every selected head over the list, for each query."""
        ...


def warn_of_truncation(passages: Sequence[Passage], truncated: Iterable[int]) -> None:
    """Say which documents are read only in part; they come back whole."""
    names = [f"{place} ({passages[place].id or passages[place].title or 'untitled'})" for place in sorted(truncated)]
    if names:
        warn_caller(
            f"only the beginning of document {', '.join(names)} is read: longer than the model's context leaves room "
            "for; split it into smaller chunks to have all of it read"
        )


def warn_caller(message: str) -> None:
    """Warn at the line that called the package, however deep within it the reason lies."""
    frame, level, outermost = sys._getframe(), 0, 0
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
            outermost = level
    warnings.warn(message, UserWarning, stacklevel=outermost + 2)
