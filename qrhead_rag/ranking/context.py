"""What every list of one retriever is encoded with, and the reading that a mode makes of a list.

The modes differ in how documents are run through the model (`listwise.py`, `per_passage.py`); calibration, mask,
aggregation, truncation and errors are the same for all and start from a `Reading`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from transformers import PreTrainedModel

from qrhead_rag.core.attention import HeadReader
from qrhead_rag.core.heads import Head, Mode, Readout, readout_of
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import PromptTokenizer
from qrhead_rag.core.reading import Reading
from qrhead_rag.core.selection import Selection
from qrhead_rag.core.template import PromptTemplate
from qrhead_rag.models.fingerprint import weights_fingerprint
from qrhead_rag.models.loading import LoadedModel
from qrhead_rag.models.lock import TurnLock
from qrhead_rag.models.shared import check_fork
from qrhead_rag.ranking.options import ListOptions
from qrhead_rag.ranking.passage_store import EncodedWith
from qrhead_rag.ranking.warn import warn_caller

_TEXT_OF_MANY_KINDS = "Two Ships, 3.14 km\n\tfoo_bar();  Été Ω 漢字 🚢"  # tokenizers differ on it
_QUERY_RESERVE = 128  # tokens kept free for a query that is not known yet


class ListTooLongError(ValueError):
    """What has to stand in one prompt is longer than the model's context.

    Attributes:
        tokens: how long it is, where that was measured.

    >>> check_length("the list with its query", 900, context_length=512, remedy="use a shorter list")
    Traceback (most recent call last):
    qrhead_rag.ranking.context.ListTooLongError: the list with its query is 900 tokens long, the context of the model \
512; use a shorter list
    """

    tokens: int = 0


def check_length(what: str, tokens: int, context_length: int | None, remedy: str) -> None:
    """Refuse what is longer than the context.

    Args:
        what: has to stand in one prompt.
        tokens: how long it is.
        context_length: tokens that a prompt may have; None knows no limit.
        remedy: what the caller can do about it.

    Raises:
        ListTooLongError: names the four.
    """
    if context_length is not None and tokens > context_length:
        error = ListTooLongError(f"{what} is {tokens} tokens long, the context of the model {context_length}; {remedy}")
        error.tokens = tokens
        raise error


@dataclass(frozen=True)
class ListContext:
    """What every list of one retriever is encoded with.

    Its methods tokenize: whoever calls them holds the lock, but for `token_counts` and `count_tokens`.

    Attributes:
        reader: reads the selected heads.
        tokenizer: makes prompts.
        template: what stands around the documents.
        heads: (layer, head) of each row that the reader gives.
        mode: how the documents are run through the model.
        readout: how their attention becomes scores.
        options: how lists are read.
        context_length: tokens that a prompt may have; None knows no limit.
        model_lock: taken as `lock`, which is held while tokenizing and running the model.
        identity: names model, heads and mode in saved files.
    """

    reader: HeadReader
    tokenizer: PromptTokenizer
    template: PromptTemplate
    heads: tuple[Head, ...]
    mode: Mode
    readout: Readout
    options: ListOptions
    context_length: int | None
    model_lock: TurnLock
    identity: dict[str, Any]

    @classmethod
    def of_model(cls, loaded: LoadedModel, mode: Mode, options: ListOptions) -> Self:
        """What the lists of a loaded model are encoded with."""
        heads, config = loaded.heads.heads, loaded.model.config.get_text_config()
        with loaded.lock:
            return cls(
                reader=HeadReader(loaded.model, heads),
                tokenizer=PromptTokenizer(loaded.tokenizer),
                template=PromptTemplate.for_tokenizer(loaded.tokenizer, options.instruction),
                heads=heads,
                mode=mode,
                readout=options.readout or readout_of(loaded.heads, mode),
                options=options,
                context_length=options.context_length or getattr(config, "max_position_embeddings", None),
                model_lock=loaded.lock,
                identity={
                    "model": loaded.name,
                    "shape": list(loaded.shape),
                    "heads": [list(head) for head in heads],
                    "mode": mode,
                },
            )

    @property
    def lock(self) -> TurnLock:
        """The model's lock.

        Raises:
            RuntimeError: in a forked process, where the model would wait for ever.
        """
        return check_fork(self.model_lock)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "what holds a model in memory, such as EncodedPassages, can be neither pickled nor deeply copied; expected "
            "a QRRetriever, which is pickled by name, or a file (EncodedPassages.save)"
        )

    def file_identity(self) -> dict[str, Any]:
        """What has to be the same where a saved list is read."""
        return self.identity | {
            "key_dtype": self.options.key_dtype,
            "piece_tokens": self.options.piece_tokens,
            "longest_piece": self.longest_piece(),
            "opening": self.tokenizer.opening(self.template),
        }

    def encoded_with(self, model: PreTrainedModel) -> EncodedWith:
        """What passages are encoded with, for a passage store; the readout is no part of it, since keys are before it.

        Args:
            model: that the reader reads.
        """
        settings = self.file_identity()
        settings["weights"] = weights_fingerprint(model, max(layer for layer, _ in self.heads) + 1)
        settings["dtype"] = str(model.dtype).removeprefix("torch.")
        settings["tokens"] = self.tokenizer.passage(_TEXT_OF_MANY_KINDS)[0]
        return EncodedWith(settings)

    def token_counts(
        self, passages: Sequence[Passage], selection: Selection, counter: Callable[[str], int] | None
    ) -> list[int] | None:
        """Tokens of each passage where they are budgeted; None where they are not.

        A caller's counter runs without the lock, for which it may itself wait in another thread.
        """
        if selection.max_tokens is None:
            return None
        if counter is not None:
            return [counter(passage.content) for passage in passages]
        with self.lock:
            return [self.tokenizer.count(passage.content) for passage in passages]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text; takes the lock itself."""
        with self.lock:
            return self.tokenizer.count(text)

    def room(self, query: str | None, documents: int = 1) -> float:
        """Tokens that a prompt has left for documents; with no query known, some are kept free for one.

        Raises:
            ListTooLongError: the query leaves no room for so many documents, however short they are.
        """
        if self.context_length is None:
            return float("inf")
        around = self.tokenizer.lay_out(self.template, []).num_tokens(query)
        if query is not None:
            least = around + documents * (self.size("") + 3)
            shortest = "the shortest document" if documents == 1 else f"the {documents} shortest documents"
            what = f"the query with the prompt around it and {shortest} there could be"
            check_length(what, least, self.context_length, "use a shorter query")
        return self.context_length - around - self.reserve(query)

    def reserve(self, query: str | None) -> int:
        """Tokens kept free for a query that is not known yet."""
        return min(_QUERY_RESERVE, (self.context_length or 0) // 4) if query is None else 0

    def size(self, content: str) -> int:
        """Tokens that a document takes in the prompt, its label and separator included; an upper bound."""
        return self.tokenizer.count(f"[1000] {content}") + self.tokenizer.count(self.template.separator)

    def longest_piece(self) -> int | None:
        """Tokens that a document, or a piece of one, may have under `independent` and `late`; None knows no limit."""
        pieces, room = self.options.piece_tokens, self.room(None)
        if pieces is None:
            return None if self.context_length is None else int(room)
        return int(min(pieces, max(16, room - self.size(""))))

    def clip(self, contents: Sequence[str], limit: float) -> tuple[list[str], set[int]]:
        """Documents cut to `limit` tokens each, label included, and the indices of those that had to be."""
        clipped, indices = list(contents), set()
        for index, content in enumerate(contents if limit < float("inf") else ()):
            if self.size(content) > limit:
                clipped[index] = self.tokenizer.cut(content, max(1, int(limit) - self.size("") - 2))
                indices.add(index)
        return clipped, indices


class ListState(Protocol):
    """One list as one mode holds it. Every call is made under the context's lock.

    `run` and `ask` may give way to other threads between batches of passages. What they give is that of the list as it
    was when they were called, though another thread may have changed it meanwhile.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held for the list."""
        ...

    @property
    def truncated(self) -> frozenset[int]:
        """Indices of the documents that are read only in part."""
        ...

    def needs_windows(self, passages: Sequence[Passage], query: str) -> bool:
        """Whether several documents and the query do not fit one prompt.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        ...

    def set_passages(self, passages: Sequence[Passage], query: str | None = None) -> None:
        """Make this the list; what was run for an earlier list serves again where it can.

        Args:
            passages: the list.
            query: what will be asked, where it is known: a single long document is cut to what it leaves room for.

        Raises:
            ListTooLongError: the list does not fit the context; it stays what it was.
        """
        ...

    def run(self, show_progress: bool = False) -> None:
        """Run the documents that have not been run."""
        ...

    def ask(self, queries: Sequence[str]) -> list[Reading]:
        """What every selected head reads of the list, for each query; what has not been run is run.

        Raises:
            ListTooLongError: the list does not fit the context together with a query.
            FloatingPointError: attention that is not finite.
        """
        ...

    def keep(self, key: str) -> None:
        """Leave in the retriever's cache what serves a list of the same texts again.

        Args:
            key: of the list: under it the cache may hold this state.
        """
        ...

    def recall(self) -> None:
        """Take from the retriever's cache what `keep` left of a list of the same texts, if it is not this state."""
        ...


def document_name(passages: Sequence[Passage], index: int) -> str:
    """A document in messages: its index, with its id or title."""
    return f"{index} ({passages[index].id or passages[index].title or 'untitled'})"


def warn_of_truncation(passages: Sequence[Passage], truncated: Iterable[int]) -> None:
    """Say which documents are read only in part; they come back whole."""
    names = [document_name(passages, index) for index in sorted(truncated)]
    if names:
        warn_caller(
            f"only the beginning of document {', '.join(names)} is read: longer than the model's context leaves room "
            "for; split it into smaller chunks to have all of it read"
        )
