"""Passages that were read one by one, in pieces if they are long, and how they are put together for a query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.model_view import layer_tensors


@dataclass(frozen=True)
class Piece:
    """A passage, or a piece of one, as the model has read it alone.

    Attributes:
        offsets: characters of each token, counted from the passage's label. # (tokens, 2)
        keys: by layer; under `late` only the heads' that look. # each (key heads, tokens, head size)
        values: by layer; empty under `late`. # each (key heads, tokens, head size)
    """

    offsets: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (self.offsets, *self.keys.values(), *self.values.values()))

    def on_its_own(self) -> "Piece":
        """The same, sharing no memory with a list that it is a slice of."""
        return Piece(
            _on_its_own(self.offsets),
            {layer: _on_its_own(keys) for layer, keys in self.keys.items()},
            {layer: _on_its_own(values) for layer, values in self.values.items()},
        )


@dataclass(frozen=True)
class PassagePieces:
    """The pieces of one passage, usually one."""

    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(piece.nbytes for piece in self.pieces)

    def on_its_own(self) -> "PassagePieces":
        """The same, sharing no memory with a list that it is a slice of."""
        return PassagePieces(tuple(piece.on_its_own() for piece in self.pieces))


class PieceToRun(NamedTuple):
    """A piece that the model has not read yet.

    Attributes:
        text: the passage.
        number: which of its pieces, from 0.
        ids: the piece's tokens, label included.
        offsets: characters of each token, counted from the passage's label.
    """

    text: str
    number: int
    ids: list[int]
    offsets: tuple[tuple[int, int], ...]


def batches(pieces: Sequence[PieceToRun], batch_tokens: int, opening: int) -> Iterator[list[PieceToRun]]:
    """Pieces of like length together, so that little is padded.

    Args:
        pieces: what has to be run.
        batch_tokens: tokens of a batch, the opening of the prompt before every piece included.
        opening: tokens of that opening.
    """
    batch: list[PieceToRun] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece.ids)):
        if batch and (len(batch) + 1) * (opening + len(batch[0].ids)) > batch_tokens:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


@dataclass
class JoinedPieces:
    """A list put together for the query.

    Attributes:
        keys: by layer, under `independent` after those of the prefix. # each (key heads, tokens, head size)
        values: by layer; empty under `late`. # each (key heads, tokens, head size)
        places: place of each token in its piece. # (tokens,)
        piece_of: piece of each token. # (tokens,)
        document_of_piece: place of each piece's document. # (pieces,)
        offsets: characters of each token, counted from its document's label. # (tokens, 2)
        null: what the null query finds, once it has been asked. # (heads, tokens)
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    places: Tensor
    piece_of: Tensor
    document_of_piece: Tensor
    offsets: Tensor
    null: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = [self.places, self.piece_of, self.document_of_piece, self.offsets]
        own += [] if self.null is None else [self.null]
        return sum(tensor.nbytes for tensor in (*self.keys.values(), *self.values.values(), *own))

    @property
    def opening(self) -> int:
        """Tokens of the prompt's opening that keys and values begin with."""
        return next(iter(self.keys.values())).shape[1] - len(self.places)

    def piece(self, start: int, end: int) -> Piece:
        """The tokens of a piece, as slices."""
        first, last = self.opening + start, self.opening + end
        return Piece(
            self.offsets[start:end],
            {layer: keys[:, first:last] for layer, keys in self.keys.items()},
            {layer: values[:, first:last] for layer, values in self.values.items()},
        )


def join(contents: dict[int, str], passages: dict[str, PassagePieces], prefix: DynamicCache | None) -> JoinedPieces:
    """Put the passages of a list together, in its order.

    Args:
        contents: text by place in the list.
        passages: what was read, by text.
        prefix: keys and values of the prompt's opening, where they come first.
    """
    pieces = [(place, piece) for place, text in contents.items() for piece in passages[text].pieces]
    lengths = torch.tensor([len(piece.offsets) for _, piece in pieces])
    before = layer_tensors(prefix) if prefix is not None else ([], [])

    def together(name: str, of_prefix: Sequence[Tensor]) -> dict[int, Tensor]:
        layers = getattr(pieces[0][1], name)
        return {
            layer: torch.cat(
                [*(t[0] for t in of_prefix[layer : layer + 1]), *(getattr(p, name)[layer] for _, p in pieces)], 1
            )
            for layer in layers
        }

    return JoinedPieces(
        keys=together("keys", before[0]),
        values=together("values", before[1]),
        places=torch.cat([torch.arange(int(length)) for length in lengths]),
        piece_of=torch.arange(len(pieces)).repeat_interleave(lengths),
        document_of_piece=torch.tensor([place for place, _ in pieces]),
        offsets=torch.cat([piece.offsets for _, piece in pieces]),
    )


def _on_its_own(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
