"""Passages that were read one by one, in pieces if they are long, and the pieces of a list."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import Tensor

from qrhead_rag.core.prompt import CONSTANT_LABEL
from qrhead_rag.ranking.quantized import dequantize, quantize

# Difference of its keys, by their size, that other dtypes and quantization make: 0.03 in bfloat16, 0.5 in rough int4.
# That of unrelated weights is about 1.4.
_SAME_MODEL = 0.7


@dataclass(frozen=True)
class Piece:
    """A passage, or a piece of one, as the model has read it alone.

    Attributes:
        offsets: characters of each token, counted from the passage's label. Shape: (tokens, 2)
        keys: by layer; under `late` only those of the selected heads. Shape: (key heads, tokens, head size) each
        values: by layer; empty under `late`. Shape: (key heads, tokens, head size) each
        scales: by layer, what the keys are multiples of; empty unless they are in 8 bits.
            Shape: (key heads, head size) each
    """

    offsets: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    scales: dict[int, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        by_layer = (*self.keys.values(), *self.values.values(), *self.scales.values())
        return sum(tensor.nbytes for tensor in (self.offsets, *by_layer))

    def quantized(self) -> Self:
        """The same with its keys in 8 bits."""
        by_layer = {layer: quantize(keys) for layer, keys in self.keys.items()}
        return replace(
            self,
            keys={layer: keys for layer, (keys, _) in by_layer.items()},
            scales={layer: scales for layer, (_, scales) in by_layer.items()},
        )


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
        starts: dict[int, int] = {}  # the first token of each piece, where it stands first in the list
        alike = []
        for (_, piece), end in zip(listed, lengths.cumsum(0).tolist(), strict=True):
            first = starts.setdefault(id(piece), end - len(piece.offsets))
            alike.append(torch.arange(first, first + len(piece.offsets)))
        return cls(
            pieces=tuple(piece for _, piece in listed),
            positions=torch.cat([torch.arange(int(length)) for length in lengths]),
            piece_of=torch.arange(len(listed)).repeat_interleave(lengths),
            document_of_piece=torch.tensor([index for index, _ in listed]),
            offsets=torch.cat([piece.offsets for _, piece in listed]),
            first_alike=torch.cat(alike),
        )

    def joined_keys(self) -> dict[int, Tensor]:
        """Keys of all pieces in one tensor a layer; those kept in 8 bits come in float32.

        Shape: (key heads, tokens, head size) each
        """
        joined, scales = self._kept_keys(), self._scales()
        return {
            layer: dequantize(keys, scales[layer][self.piece_of].transpose(0, 1)) if layer in scales else keys
            for layer, keys in joined.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the pieces under `late`, by name, as a saved list has it."""
        named = {f"keys.{layer}": keys for layer, keys in self._kept_keys().items()}
        named |= {f"scales.{layer}": scales for layer, scales in self._scales().items()}
        return named | {"offsets": self.offsets, "piece_of": self.piece_of.to(torch.int32)}

    def _kept_keys(self) -> dict[int, Tensor]:
        """Keys of all pieces as they are kept. Shape: (key heads, tokens, head size) each"""
        layers = self.pieces[0].keys
        return {layer: torch.cat([piece.keys[layer] for piece in self.pieces], dim=1) for layer in layers}

    def _scales(self) -> dict[int, Tensor]:
        """Scales of all pieces, by layer; none unless keys are in 8 bits. Shape: (pieces, key heads, head size) each"""
        layers = self.pieces[0].scales
        return {layer: torch.stack([piece.scales[layer] for piece in self.pieces]) for layer in layers}


def pieces_of_saved(tensors: Mapping[str, Tensor], device: torch.device) -> list[Piece]:
    """The pieces of a saved list, in its order, each with tensors of its own."""
    keys_by_layer, scales_by_layer = _by_layer(tensors, "keys."), _by_layer(tensors, "scales.")
    pieces, start = [], 0
    for number, length in enumerate(torch.bincount(tensors["piece_of"]).tolist()):
        own = slice(start, start := start + length)
        keys = {layer: tensor[:, own].clone().to(device) for layer, tensor in keys_by_layer.items()}
        scales = {layer: tensor[number].clone().to(device) for layer, tensor in scales_by_layer.items()}
        pieces.append(Piece(tensors["offsets"][own].clone(), keys, {}, scales))
    return pieces


def _by_layer(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    """The tensors whose name is a prefix and a layer."""
    return {int(name.removeprefix(prefix)): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_saved_pieces(
    document_of_piece: Sequence[int],
    tensors: Mapping[str, Tensor],
    contents: Mapping[int, str],
    opening: Mapping[int, Tensor],
    key_dtype: torch.dtype,
) -> None:
    """Refuse the tensors of a saved list that do not belong together, to the texts or to the model.

    Args:
        document_of_piece: index of each piece's document.
        tensors: those of the file, by name.
        contents: text by index in the list.
        opening: keys of the prompt's opening as this model reads it, by layer.
        key_dtype: that of the passages' keys.

    Raises:
        ValueError: names what does not belong.
    """
    tokens = len(tensors["piece_of"])
    expected = {"piece_of": (torch.int32, (tokens,)), "offsets": (torch.int32, (tokens, 2))}
    for layer, keys in opening.items():
        expected[f"opening.{layer}"] = keys.dtype, tuple(keys.shape)
        expected[f"keys.{layer}"] = key_dtype, (keys.shape[0], tokens, keys.shape[2])
        if key_dtype == torch.int8:
            expected[f"scales.{layer}"] = torch.bfloat16, (len(document_of_piece), keys.shape[0], keys.shape[2])
    actual = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if actual != expected:
        raise ValueError(f"it holds {sorted(actual.items())}, expected {sorted(expected.items())}")
    for layer, keys in opening.items():
        own, other = keys.float(), tensors[f"opening.{layer}"].to(keys.device).float()
        if not float((other - own).norm()) <= _SAME_MODEL * float(own.norm()):
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
