"""An encoded passage as bytes, for a store: a checksum, a header in JSON, and tensors as they lie in memory.

Nothing in the bytes is executed when they are read. They are bound to the key that they were written under, so that
bytes of another passage, model or version are refused like damaged ones.
"""

import hashlib
from itertools import chain
from math import prod
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from qrhead_rag.ranking.pieces import PassagePieces, Piece

FORMAT = 1
"""Raised when the bytes of a passage change, so that those of another version are not read."""

_CHECKSUM_BYTES = 32
_LENGTH_BYTES = 4
_ALIGNED = 8  # bytes: every tensor begins at a multiple, as views of another dtype need it


class DamagedValueError(ValueError):
    """Bytes that are not those of the passage they are read for: cut off, changed, or another passage's.

    >>> from_bytes("key", b"nothing", torch.device("cpu"))
    Traceback (most recent call last):
    qrhead_rag.ranking.passage_bytes.DamagedValueError: 7 bytes, too few for an encoded passage
    """


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    tokens: list[PositiveInt] = Field(min_length=1)  # of each piece
    layers: list[int] = Field(min_length=1)
    dtype: Literal["float16", "bfloat16", "float32", "int8"]
    shapes: list[tuple[PositiveInt, PositiveInt]]  # key heads and head size of each layer
    scaled: bool  # whether each piece has a scale for every dimension of a key head

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if len(self.layers) != len(self.shapes):
            raise ValueError(f"{len(self.layers)} layers and {len(self.shapes)} shapes; expected as many")
        return self


class _Section(NamedTuple):
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def to_bytes(key: str, passage: PassagePieces) -> bytes:
    """A passage of mode `late` as bytes.

    Args:
        key: what they are kept under.
        passage: with at least one piece; no values.
    """
    first = passage.pieces[0]
    dtype = next(iter(first.keys.values())).dtype
    header = _Header(
        format=FORMAT,
        tokens=[len(piece.offsets) for piece in passage.pieces],
        layers=[*first.keys],
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
        shapes=[(keys.shape[0], keys.shape[2]) for keys in first.keys.values()],
        scaled=bool(first.scales),
    )
    sections = _sections(header)
    payload = memoryview(bytearray(sections[-1].end))  # which takes no tensor of another size
    tensors = chain.from_iterable(
        (piece.offsets, *piece.keys.values(), *piece.scales.values()) for piece in passage.pieces
    )
    for section, tensor in zip(sections, tensors, strict=True):
        # A view as bytes, since numpy knows no bfloat16.
        flat = tensor.to("cpu", section.dtype).contiguous().reshape(-1).view(torch.uint8)
        payload[section.start : section.end] = flat.numpy().tobytes()
    text = header.model_dump_json().encode()
    text += b" " * (-(_CHECKSUM_BYTES + _LENGTH_BYTES + len(text)) % _ALIGNED)
    content = len(text).to_bytes(_LENGTH_BYTES, "little") + text + payload
    return _checksum(key, content) + content


def from_bytes(key: str, value: bytes, device: torch.device) -> PassagePieces:
    """The passage that `to_bytes` wrote under a key.

    Args:
        key: what the bytes are kept under.
        value: the bytes.
        device: where the keys are needed; offsets stay on the CPU.

    Raises:
        DamagedValueError: the bytes are not what was written under this key.
    """
    if len(value) < _CHECKSUM_BYTES + _LENGTH_BYTES:
        raise DamagedValueError(f"{len(value)} bytes, too few for an encoded passage")
    content = memoryview(value)[_CHECKSUM_BYTES:]
    if _checksum(key, content) != value[:_CHECKSUM_BYTES]:
        raise DamagedValueError("the checksum is another: damaged, or written for another passage")
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        header = _Header.model_validate_json(bytes(content[_LENGTH_BYTES:start]))
    except ValidationError as error:
        raise DamagedValueError(f"its header cannot be read ({error})") from error
    sections = _sections(header)
    if header.format != FORMAT or len(content) - start != sections[-1].end:
        raise DamagedValueError(f"its format is {header.format} and its tensors have {len(content) - start} bytes")
    on_cpu = torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8)
    payload = on_cpu.to(device)  # at once, since each transfer to an accelerator waits
    by_piece = len(sections) // len(header.tokens)
    return PassagePieces(
        tuple(
            _piece(header.layers, on_cpu, payload, sections[first : first + by_piece])
            for first in range(0, len(sections), by_piece)
        )
    )


def _piece(layers: list[int], on_cpu: Tensor, payload: Tensor, sections: list[_Section]) -> Piece:
    offsets, *tensors = (
        data[section.start : section.end].view(section.dtype).view(section.shape)
        for data, section in zip([on_cpu, *[payload] * (len(sections) - 1)], sections, strict=True)
    )
    keys, scales = tensors[: len(layers)], tensors[len(layers) :]
    # A copy where the keys went to an accelerator: the bytes would stay in memory for the offsets alone.
    offsets = offsets.clone() if payload is not on_cpu else offsets
    return Piece(offsets, dict(zip(layers, keys, strict=True)), {}, dict(zip(layers, scales, strict=bool(scales))))


def _sections(header: _Header) -> list[_Section]:
    """Where the tensors of a header lie, piece by piece: offsets, the keys of each layer, the scales of each."""
    dtype, sections, start = getattr(torch, header.dtype), [], 0
    for tokens in header.tokens:
        shapes: list[tuple[torch.dtype, tuple[int, ...]]] = [(torch.int32, (tokens, 2))]
        shapes += [(dtype, (heads, tokens, size)) for heads, size in header.shapes]
        shapes += [(torch.bfloat16, shape) for shape in header.shapes] * header.scaled
        for kind, shape in shapes:
            end = start + prod(shape) * kind.itemsize
            sections.append(_Section(kind, shape, start, end))
            start = end + -end % _ALIGNED
    return sections


def _checksum(key: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(content)
    return digest.digest()
