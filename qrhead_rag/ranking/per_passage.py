"""`independent` and `late`: every passage encoded alone after the shared opening, all at the same positions.

The order of the list cannot matter, cost is linear in the number of passages, and what was run for a passage serves
every list that it appears in. Under `independent` the query part attends to the keys and values of all passages in
every layer. Under `late` it is run without seeing any; the queries of the selected heads alone meet those heads' keys
of every passage.

The heads are read as if the opening of the prompt were not there: what they leave on its first tokens, where attention
rests that finds nothing, says little of the passages (benchmarks/reports/choices.md).

Long passages are cut into pieces that are encoded like passages; scores of a passage's best pieces are added up.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Tensor

from qrhead_rag.core.attention import QueryPrefix, Rows
from qrhead_rag.core.heads import Readout
from qrhead_rag.core.model_view import joined_cache, layer_tensors
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import CONSTANT_LABEL, NULL_QUERY
from qrhead_rag.core.reading import Reading
from qrhead_rag.core.scoring import check_finite
from qrhead_rag.ranking.asking import Baseline, ask, rows_to_read
from qrhead_rag.ranking.cache import content_key
from qrhead_rag.ranking.context import check_length
from qrhead_rag.ranking.encoding import encode_passages
from qrhead_rag.ranking.pieces import ListedPieces, PassagePieces, Piece, check_saved_pieces, pieces_of_saved
from qrhead_rag.ranking.quantized import quantize
from qrhead_rag.ranking.store import ListStore


class PerPassage(ABC):
    """A list of passages that are encoded alone. What is kept, and how it is asked, is said by the mode's own class.

    The tensors of a passage are those of the retriever's cache: a list refers to them and copies none.
    """

    READING_VERSION: ClassVar = 3
    """Raised whenever the scores of a mode change, so that recordings made before are not reused.

    1 let the heads see the prompt's opening, 2 hid it from them, 3 cuts pieces by tokens instead of characters.
    """

    def __init__(self, store: ListStore) -> None:
        self._store, self._context = store, store.context
        self._passages: dict[str, PassagePieces] = {}  # by content
        self._contents: dict[int, str] = {}  # by index in the list
        self._baseline: Baseline | None = None
        self.truncated: frozenset[int] = frozenset()

    @abstractmethod
    def _keep(self, offsets: Tensor, keys: list[Tensor], values: list[Tensor]) -> Piece:
        """What is kept of a piece; `_attend` gets it back in its list.

        Args:
            offsets: characters of each token. Shape: (tokens, 2)
            keys: of every layer that ran, views of those of a batch. Shape: (key heads, tokens, head size) each
            values: likewise.
        """

    @abstractmethod
    def _attend(self, parts: Sequence[Rows], listed: ListedPieces) -> Tensor:
        """Attention of the selected heads to the opening and the passages.

        Args:
            parts: the query parts, which stand right after the longest passage.
            listed: the pieces of the list with what `_keep` left of each; `joined_keys()` puts their keys together,
                and `positions` are those of their tokens, counted from the end of the opening.

        Returns:
            Tokens of the opening first. Shape: (heads, readings, tokens)
        """

    @property
    def nbytes(self) -> int:
        """Bytes of what the passages keep, and of the baseline."""
        baseline = 0 if self._baseline is None else self._baseline.nbytes
        return baseline + sum(passage.nbytes for passage in self._passages.values())

    def needs_windows(self, passages: Sequence[Passage], query: str) -> bool:
        """Never: a list may be of any length, and only one piece has to fit the context with the query."""
        return False

    def set_passages(self, passages: Sequence[Passage], query: str | None = None) -> None:
        """Make this the list; passages that have been run stay run."""
        context = self._context
        contents = {index: passage.content for index, passage in enumerate(passages) if not passage.is_blank}
        truncated: frozenset[int] = frozenset()
        if contents and context.options.piece_tokens is None:
            clipped, numbers = context.clip(list(contents.values()), context.room(query))
            truncated = frozenset(list(contents)[number] for number in numbers)
            contents = dict(zip(contents, clipped, strict=True))
        texts = set(contents.values())
        left = {text: pieces for text, pieces in self._passages.items() if text in texts}
        baseline = self._baseline if list(contents.values()) == list(self._contents.values()) else None
        # At once, whatever interrupts.
        self._baseline, self._contents, self._passages, self.truncated = baseline, contents, left, truncated

    def run(self, show_progress: bool = False) -> None:
        """Encode the passages that no list of this retriever has encoded, those of like length together.

        Gives way between batches: see `encode_passages`.
        """
        self._encoded(self._contents, show_progress)

    def _encoded(self, contents: Mapping[int, str], show_progress: bool = False) -> dict[str, PassagePieces]:
        """The passages of these contents, by text. They stay the caller's, whatever other threads make of the list."""
        cache, listed_before = self._store.cache, self._passages
        encoded = {text: listed_before[text] for text in contents.values() if text in listed_before}
        cache_keys = {text: content_key("passage", text) for text in contents.values() if text not in encoded}
        encoded |= {text: passage for text, key in cache_keys.items() if (passage := cache.get(key)) is not None}
        missing = [text for text in cache_keys if text not in encoded]
        if missing and self._store.stored is not None:
            stored = self._store.stored.read(missing)
            for text, passage in stored.items():
                cache.put(cache_keys[text], passage)
            encoded |= stored
            missing = [text for text in missing if text not in stored]
        if missing:
            new = encode_passages(self._store, self._keep, missing, show_progress)
            for text, passage in new.items():
                cache.put(cache_keys[text], passage)
            encoded |= new
        if not encoded.keys() <= self._passages.keys():
            listed = set(self._contents.values())  # which another thread may have changed meanwhile
            passages = encoded | self._passages
            self._passages = {text: passage for text, passage in passages.items() if text in listed}
        return encoded

    def ask(self, queries: Sequence[str]) -> list[Reading]:
        """What every selected head reads of the list as it is now, for each query; the queries share passes.

        Raises:
            ListTooLongError: the longest piece does not fit the context together with a query.
            ValueError: a window hides part of a document from a head.
            FloatingPointError: attention that is not finite.
        """
        context, contents = self._context, self._contents
        if not contents or not queries:
            return [Reading.of_nothing(context.readout, len(context.heads)) for _ in queries]
        listed = ListedPieces.of(contents, self._encoded(contents))
        position, readout = self._query_position(listed), context.readout
        answers = ask(
            readout,
            lambda parts: self._attention(parts, listed),
            [self._rows(readout, query, position) for query in queries],
            lambda: self._rows(readout, NULL_QUERY, position),
            self._baseline if self._contents is contents else None,  # another thread may have changed the list
            listed.piece_of,
            len(listed.pieces),
        )
        if self._contents is contents:
            self._baseline = answers.baseline
        labels = dict.fromkeys(contents, CONSTANT_LABEL)
        return [
            # Equal texts have equal scores: those of the first. Attention itself differs by the last bit.
            Reading(
                readout,
                by_head[:, listed.first_alike],
                listed.piece_of,
                listed.document_of_piece,
                listed.offsets,
                labels,
                strengths,
            )
            for by_head, strengths in zip(answers.by_head, answers.strengths, strict=True)
        ]

    def keep(self, key: str) -> None:
        """Leave what the null query found in the retriever's cache, where the passages are already."""
        if self._baseline is not None and self._context.readout == "published":
            self._store.cache.put(self._null_key(), self._baseline)

    def recall(self) -> None:
        """What the null query found in a list of the same texts, where the readout asks one."""
        if self._context.readout == "published":
            self._baseline = self._store.cache.get(self._null_key())

    def _null_key(self) -> str:
        return content_key("null", *self._contents.values())

    def _query_position(self, listed: ListedPieces) -> int:
        """Right after the longest piece of the list: nearer is better (benchmarks/reports/choices.md)."""
        return int(self._store.opening.cache().get_seq_length() + listed.positions.max()) + 1

    def _rows(self, readout: Readout, query: str, position: int) -> Rows:
        """The rows of a query that a readout reads, at a position that leaves room for them."""
        context = self._context
        question = context.tokenizer.question(context.template, query)
        remedy = "use smaller pieces (piece_tokens=) or a shorter query"
        what = "the longest piece of the list with the query"
        check_length(what, position + len(question.ids), context.context_length, remedy)
        return rows_to_read(readout, question.ids, position, question.query_start, question.query_tokens)

    def _attention(self, parts: Sequence[Rows], listed: ListedPieces) -> Tensor:
        """a(t) over the documents' tokens. Shape: (heads, readings, tokens)"""
        context, opening = self._context, self._store.opening.cache().get_seq_length()
        attention = self._attend(parts, listed)[:, :, opening:]
        check_finite(attention, context.heads, listed.document_of_piece[listed.piece_of], listed.joined_keys)
        return attention


class Independent(PerPassage):
    """Keeps every layer's keys and values of a passage. The query attends to all passages in every layer."""

    def _keep(self, offsets: Tensor, keys: list[Tensor], values: list[Tensor]) -> Piece:
        return Piece(offsets, tuple(key.clone() for key in keys), tuple(value.clone() for value in values))

    def _attend(self, parts: Sequence[Rows], listed: ListedPieces) -> Tensor:
        opening = self._store.opening.cache()
        keys, values = layer_tensors(opening)
        cache = joined_cache(
            [[tensor, *(piece.keys[layer][None] for piece in listed.pieces)] for layer, tensor in enumerate(keys)],
            [[tensor, *(piece.values[layer][None] for piece in listed.pieces)] for layer, tensor in enumerate(values)],
        )
        length = opening.get_seq_length()
        positions = torch.cat([torch.arange(length), listed.positions + length])
        return self._context.reader.read(cache, parts, key_positions=positions, hidden=length, see_all=True)


class Late(PerPassage):
    """Keeps only the keys that the selected heads look at. Their queries alone meet the passages.

    The prompt up to the query meets none of them: it is run once for each position, and kept.
    """

    def _keep(self, offsets: Tensor, keys: list[Tensor], values: list[Tensor]) -> Piece:
        of_heads = self._context.reader.keys_for_heads(keys)[None]
        if self._key_dtype != torch.int8:
            return Piece(offsets, (of_heads.to(self._key_dtype),))
        rounded, scales = quantize(of_heads)
        return Piece(offsets, (rounded,), scales=scales)

    def _attend(self, parts: Sequence[Rows], listed: ListedPieces) -> Tensor:
        opening = self._store.opening.cache()
        length = opening.get_seq_length()
        (keys,) = listed.joined_keys()
        return self._context.reader.read(
            opening,
            parts,
            prefix=self._prefix(parts),
            late_keys=keys[0],
            late_positions=listed.positions + length,
            hidden=length,
            see_all=True,
        )

    def _prefix(self, parts: Sequence[Rows]) -> QueryPrefix | None:
        """The prompt up to the query, which does not depend on it and is not run again; None where parts differ."""
        tokenizer, template = self._context.tokenizer, self._context.template
        any_question, position = tokenizer.question(template, NULL_QUERY), parts[0].position
        # The last token of a part has to run: it is one of the query's own.
        tokens = zip(
            any_question.ids[: any_question.query_tokens.start], *(part.ids[:-1] for part in parts), strict=False
        )
        ids = [token for token, *of_parts in takewhile(lambda alike: len(set(alike)) == 1, tokens)]
        alike = ids and all(part.position == position for part in parts)
        return self._store.opening.query_prefix(ids, position) if alike else None

    def take_over(self, other: "Late") -> None:
        """Use again, for the list that is set next, what another list of the same retriever has run."""
        self._passages = self._passages | other._passages

    def state(self) -> tuple[list[int], dict[str, Tensor]]:
        """What is kept of the list, for a file: the document of each piece, and tensors by name."""
        if not self._contents:
            return [], {}
        contents = self._contents
        listed = ListedPieces.of(contents, self._encoded(contents))
        return listed.document_of_piece.tolist(), listed.tensors() | {"opening": self._opening_keys()}

    def restore(self, document_of_piece: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave for a list of the same texts.

        Raises:
            ValueError: the tensors do not belong together, to the texts or to the model.
        """
        if not self._contents:
            return
        by_layer = partial(self._context.reader.by_layer, cache=self._store.opening.cache())
        check_saved_pieces(document_of_piece, tensors, self._contents, self._opening_keys(), by_layer, self._key_dtype)
        pieces = pieces_of_saved(tensors, self._context.reader.device)
        by_document: dict[int, list[Piece]] = {index: [] for index in self._contents}
        for index, piece in zip(document_of_piece, pieces, strict=True):
            by_document[index].append(piece)
        self._passages = {text: PassagePieces(tuple(by_document[index])) for index, text in self._contents.items()}
        self._baseline = None

    @property
    def _key_dtype(self) -> torch.dtype:
        """What keys are kept in."""
        dtype: torch.dtype = getattr(torch, self._context.options.key_dtype)
        return dtype

    def _opening_keys(self) -> Tensor:
        """Keys of the prompt's opening, in float32 where passages have 8 bits. Shape: (tokens, dimensions)"""
        keys_by_layer, _ = layer_tensors(self._store.opening.cache())
        keys = self._context.reader.keys_for_heads([keys[0] for keys in keys_by_layer])
        return keys.to(torch.float32 if self._key_dtype == torch.int8 else self._key_dtype)
