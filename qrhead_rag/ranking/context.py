"""What every list of one retriever is encoded with, and the reading that a mode makes of a list.

The modes differ in how documents are run through the model (`listwise.py`, `per_passage.py`); calibration, mask,
aggregation, truncation and errors are the same for all and start from a `Reading`.
"""

import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qrhead_rag.core.attention import PREFILL_TOKENS, HeadReader
from qrhead_rag.core.heads import Head, Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import NULL_QUERY, PromptTemplate, PromptTokenizer
from qrhead_rag.core.scoring import Reading
from qrhead_rag.ranking.cache import ByteCache

Layout: TypeAlias = Literal["given", "reversed"]

_OURS = ("qrhead_rag.", "langchain_qrhead.", "llama_index.postprocessor.qrhead.")
_QUERY_RESERVE = 128  # tokens kept free for a query that is not known yet


class ListOptions(BaseModel):
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
        batch_tokens: under `independent` and `late`, tokens that run through the model together: those of documents,
            padding, and the opening of the prompt before each; bounds memory, and keeps an accelerator busy.
        cache_bytes: what the retriever may keep of lists and passages it has read, in bytes, and as much again of
            conversations, where memories use it; 0 keeps nothing.
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


class ListTooLongError(ValueError):
    """The list and its query are longer than the model's context."""


@dataclass(frozen=True)
class ListContext:
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
    options: ListOptions
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
            "longest_piece": self.longest_piece(),
            "opening": self.tokenizer.opening(self.template),
        }

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, read as plain text by the model's tokenizer."""
        with self.lock:
            return self.tokenizer.count(text)

    def room(self, query: str | None) -> float:
        """Tokens that a prompt has left for documents; with no query known, some are kept free for one.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        if self.context_length is None:
            return float("inf")
        around = len(self.tokenizer.prompt(self.template, [], self.longest_question(query)).ids)
        room = self.context_length - around - self._reserve(query)
        if query is not None and room <= self.size("") + 2:
            raise ListTooLongError(
                f"the query with the prompt around it is {around} tokens long, the context of the model "
                f"{self.context_length}, which leaves no room for documents; use a shorter query"
            )
        return room

    def size(self, content: str) -> int:
        """Tokens that a document takes in the prompt, its label and separator included; an upper bound."""
        return self.tokenizer.count(f"[1000] {content}") + self.tokenizer.count(self.template.separator)

    def longest_piece(self) -> int | None:
        """Tokens that a document, or a piece of one, may have under `independent` and `late`; None knows no limit."""
        pieces, room = self.options.piece_tokens, self.room(None)
        if pieces is None:
            return None if self.context_length is None else int(room)
        return int(min(pieces, max(16, room - self.size(""))))

    def longest_question(self, query: str | None) -> str:
        """Query or null query, whichever is longer: the list has to fit with both."""
        return max(query or NULL_QUERY, NULL_QUERY, key=self.tokenizer.count)

    def fits(self, contents: Sequence[str], query: str | None) -> bool:
        """Whether the documents, as they are, fit one listwise prompt."""
        if self.context_length is None:
            return True
        prompt = self.tokenizer.prompt(self.template, contents, self.longest_question(query))
        return len(prompt.ids) + self._reserve(query) <= self.context_length

    def needs_windows(self, passages: Sequence[Passage], query: str) -> bool:
        """Whether several documents and the query do not fit one listwise prompt.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        contents = [passage.content for passage in passages if not passage.is_blank]
        if len(contents) < 2 or self.fits(contents, query):
            return False
        self.room(query)
        return True

    def clip(self, contents: Sequence[str], limit: float) -> tuple[list[str], set[int]]:
        """Documents cut to `limit` tokens each, label included, and the places of those that had to be."""
        clipped, places = list(contents), set()
        for place, content in enumerate(contents):
            if self.size(content) > limit:
                clipped[place] = self.tokenizer.cut(content, max(1, int(limit) - self.size("") - 2))
                places.add(place)
        return clipped, places

    def _reserve(self, query: str | None) -> int:
        """Tokens kept free for a query that is not known yet."""
        return min(_QUERY_RESERVE, (self.context_length or 0) // 4) if query is None else 0


class ListState(Protocol):
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
    """Warn at the line that called the package or an integration, however deep within it the reason lies."""
    frame, level, outermost = sys._getframe(), 0, 0
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        if f"{frame.f_globals.get('__name__')}.".startswith(_OURS):
            outermost = level
    warnings.warn(message, UserWarning, stacklevel=outermost + 2)
