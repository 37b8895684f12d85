"""Passages that were read one by one, in pieces if they are long, and the pieces of a list."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import Tensor

from qrhead_rag.core.model_view import join
from qrhead_rag.core.prompt import CONSTANT_LABEL
from qrhead_rag.ranking.quantized import dequantize

# Difference of its keys, by their size, that other dtypes and quantization make: 0.03 in bfloat16, 0.5 in rough int4.
# That of unrelated weights is about 1.4.
_SAME_MODEL = 0.7


@dataclass(frozen=True)
class Piece:
    """A passage, or a piece of one, as the model has read it alone.

    Attributes:
        offsets: characters of each token, counted from the passage's label. Shape: (tokens, 2)
        keys: of every layer; under `late` one tensor of the selected heads' keys, which lie side by side in it.
            Shape: (key heads, tokens, head size) each; under `late` (1, tokens, dimensions)
        values: of every layer; none under `late`. Shape: (key heads, tokens, head size) each
        scales: under `late` what the keys are multiples of, if they are in 8 bits. Shape: (1, dimensions)
    """

    offsets: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...] = ()
    scales: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        scales = () if self.scales is None else (self.scales,)
        return sum(tensor.nbytes for tensor in (self.offsets, *self.keys, *self.values, *scales))


@dataclass(frozen=True)
class PassagePieces:
    """The pieces of one passage, usually one."""

    pieces: tuple[Piece, ...]

    @classmethod
    def in_order(cls, pieces: Mapping[int, Piece]) -> Self:
        """The pieces of a passage by their numbers."""
        return cls(tuple(pieces[number] for number in sorted(pieces)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(piece.nbytes for piece in self.pieces)


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


@dataclass(frozen=True)
class ListedPieces:
    """The pieces of a list, in its order, and where each of their tokens belongs. The pieces' tensors stay theirs.

    Attributes:
        pieces: as they were read alone.
        positions: position of each token in its piece. Shape: (tokens,)
        piece_of: piece of each token. Shape: (tokens,)
        document_of_piece: index of each piece's document. Shape: (pieces,)
        offsets: characters of each token, counted from its document's label. Shape: (tokens, 2)
        first_alike: each token's place in the list, or in the first document of the same text. Shape: (tokens,)
    """

    pieces: tuple[Piece, ...]
    positions: Tensor
    piece_of: Tensor
    document_of_piece: Tensor
    offsets: Tensor
    first_alike: Tensor

    @classmethod
    def of(cls, contents: Mapping[int, str], passages: Mapping[str, PassagePieces]) -> Self:
        """List the pieces of some documents.

        Args:
            contents: text by index in the list.
            passages: what was read, by text.
        """
        listed = [(index, piece) for index, text in contents.items() for piece in passages[text].pieces]
        lengths = torch.tensor([len(piece.offsets) for _, piece in listed])
        starts = lengths.cumsum(0) - lengths  # (pieces,)
        first_of: dict[int, int] = {}  # where each piece begins that stands first in the list
        firsts = [
            first_of.setdefault(id(piece), start) for (_, piece), start in zip(listed, starts.tolist(), strict=True)
        ]
        piece_of = torch.arange(len(listed)).repeat_interleave(lengths)
        positions = torch.arange(len(piece_of)) - starts[piece_of]
        return cls(
            pieces=tuple(piece for _, piece in listed),
            positions=positions,
            piece_of=piece_of,
            document_of_piece=torch.tensor([index for index, _ in listed]),
            offsets=torch.cat([piece.offsets for _, piece in listed]),
            first_alike=torch.tensor(firsts)[piece_of] + positions,
        )

    def joined_keys(self) -> Iterator[Tensor]:
        """What each tensor of keys is of all pieces together; those kept in 8 bits come in float32.

        Shape: (key heads, tokens, head size) each, under `late` (1, tokens, dimensions)
        """
        scales = self._scales()
        for of_pieces in zip(*(piece.keys for piece in self.pieces), strict=True):
            keys = join(of_pieces, dim=1)
            yield keys if scales is None else dequantize(keys, scales[None, self.piece_of.to(scales.device)])

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the pieces under `late`, by name, as a saved list has it."""
        scales = self._scales()
        keys = join([piece.keys[0][0] for piece in self.pieces], dim=0)
        named = {"keys": keys} | ({} if scales is None else {"scales": scales})
        return named | {"offsets": self.offsets, "piece_of": self.piece_of.to(torch.int32)}

    def _scales(self) -> Tensor | None:
        """Scales of all pieces; None unless keys are in 8 bits. Shape: (pieces, dimensions)"""
        of_pieces = [piece.scales for piece in self.pieces if piece.scales is not None]
        return torch.cat(of_pieces) if of_pieces else None


def pieces_of_saved(tensors: Mapping[str, Tensor], device: torch.device) -> list[Piece]:
    """The pieces of a saved list, in its order, each with tensors of its own."""
    pieces, start = [], 0
    for number, length in enumerate(torch.bincount(tensors["piece_of"]).tolist()):
        own = slice(start, start := start + length)
        keys = tensors["keys"][None, own].clone().to(device)
        scales = tensors["scales"][None, number].clone().to(device) if "scales" in tensors else None
        pieces.append(Piece(tensors["offsets"][own].clone(), (keys,), scales=scales))
    return pieces


def check_saved_pieces(
    document_of_piece: Sequence[int],
    tensors: Mapping[str, Tensor],
    contents: Mapping[int, str],
    opening: Tensor,
    by_layer: Callable[[Tensor], Mapping[int, Tensor]],
    key_dtype: torch.dtype,
) -> None:
    """Refuse the tensors of a saved list that do not belong together, to the texts or to the model.

    Args:
        document_of_piece: index of each piece's document.
        tensors: those of the file, by name.
        contents: text by index in the list.
        opening: keys of the prompt's opening as this model reads it. Shape: (tokens, dimensions)
        by_layer: gives views of such keys by layer.
        key_dtype: that of the passages' keys.

    Raises:
        ValueError: names what does not belong.
    """
    tokens, dimensions = len(tensors["piece_of"]), opening.shape[1]
    expected = {
        "piece_of": (torch.int32, (tokens,)),
        "offsets": (torch.int32, (tokens, 2)),
        "opening": (opening.dtype, tuple(opening.shape)),
        "keys": (key_dtype, (tokens, dimensions)),
    }
    if key_dtype == torch.int8:
        expected["scales"] = torch.bfloat16, (len(document_of_piece), dimensions)
    actual = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if actual != expected:
        raise ValueError(f"it holds {sorted(actual.items())}, expected {sorted(expected.items())}")
    saved = by_layer(tensors["opening"].to(opening.device).float())
    for layer, own in by_layer(opening.float()).items():
        if not float((saved[layer] - own).norm()) <= _SAME_MODEL * float(own.norm()):
            raise ValueError(
                f"its model has other weights than this one of the same name: keys of layer {layer} differ"
            )
    documents = [index for index in document_of_piece if type(index) is int]
    if documents != sorted(document_of_piece) or set(documents) != set(contents):
        raise ValueError("its pieces do not belong to its texts")
    piece_of, offsets = tensors["piece_of"].long(), tensors["offsets"]
    if [number for number, _ in groupby(piece_of.tolist())] != list(range(len(documents))):
        raise ValueError("its tokens do not belong to its pieces")
    ends = torch.tensor([len(CONSTANT_LABEL + contents[index]) for index in documents])[piece_of]
    if not bool(((offsets[:, 0] >= 0) & (offsets[:, 0] <= offsets[:, 1]) & (offsets[:, 1] <= ends)).all()):
        raise ValueError("its tokens lie outside its texts")
