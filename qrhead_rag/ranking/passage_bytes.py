"""An encoded passage as bytes, for a store: a checksum, a header in JSON, and tensors as they lie in memory.

Nothing in the bytes is executed when they are read. They are bound to the key that they were written under, so that
bytes of another passage, model or version are refused like damaged ones.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from qrhead_rag.core.heads import KeyDtype
from qrhead_rag.ranking.pieces import PassagePieces, Piece

FORMAT = 2
"""Raised when the bytes of a passage change, so that those of another version are not read."""

_CHECKSUM_BYTES = 4
_LENGTH_BYTES = 4
_SMALL_HEADER = 256  # bytes; of a few pieces
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
    dtype: KeyDtype
    dimensions: PositiveInt  # of the keys of all heads together
    scaled: bool  # whether each piece has a scale for every dimension


class _Section(NamedTuple):
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def of(self, payload: bytearray) -> Tensor:
        """The tensor, which shares the memory of the bytes."""
        return torch.frombuffer(payload, dtype=self.dtype, count=prod(self.shape), offset=self.start).view(self.shape)


def to_bytes(key: str, passage: PassagePieces) -> bytes:
    """A passage of mode `late` as bytes.

    Args:
        key: what they are kept under.
        passage: with at least one piece; no values.
    """
    first = passage.pieces[0]
    header = _Header(
        format=FORMAT,
        tokens=[len(piece.offsets) for piece in passage.pieces],
        dtype=str(first.keys[0].dtype).removeprefix("torch."),  # type: ignore[arg-type]
        dimensions=first.keys[0].shape[2],
        scaled=first.scales is not None,
    )
    sections = list(_sections(header))
    payload = memoryview(bytearray(sections[-1][-1].end))  # which takes no tensor of another size
    for piece, of_piece in zip(passage.pieces, sections, strict=True):
        scales = [] if piece.scales is None else [piece.scales]
        for section, tensor in zip(of_piece, [piece.offsets, *piece.keys, *scales], strict=True):
            # A view as bytes, since numpy knows no bfloat16.
            flat = tensor.to("cpu", section.dtype).contiguous().reshape(-1).view(torch.uint8)
            payload[section.start : section.end] = flat.numpy().tobytes()
    text = header.model_dump_json().encode()
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
    text = bytes(content[_LENGTH_BYTES:start])
    try:
        header, sections = (_parsed if len(text) <= _SMALL_HEADER else _parsed.__wrapped__)(text)
    except ValidationError as error:
        raise DamagedValueError(f"its header cannot be read ({error})") from error
    if header.format != FORMAT or len(content) - start != sections[-1][-1].end:
        raise DamagedValueError(f"its format is {header.format} and its tensors have {len(content) - start} bytes")
    payload, pieces = bytearray(content[start:]), []
    for offsets_section, *of_keys in sections:
        offsets = offsets_section.of(payload)
        keys, *scales = (section.of(payload).to(device) for section in of_keys)
        if device.type != "cpu":  # the bytes would stay in memory for the offsets alone
            offsets = offsets.clone()
        pieces.append(Piece(offsets, (keys,), scales=scales[0] if scales else None))
    return PassagePieces(tuple(pieces))


@lru_cache(maxsize=1024)  # passages of one length have one header, and most have one piece
def _parsed(text: bytes) -> tuple[_Header, list[list[_Section]]]:
    header = _Header.model_validate_json(text)
    return header, list(_sections(header))


def _sections(header: _Header) -> Iterator[list[_Section]]:
    """Where the tensors of each piece lie: offsets, keys, scales if there are."""
    dtype, start = getattr(torch, header.dtype), 0
    for tokens in header.tokens:
        shapes: list[tuple[torch.dtype, tuple[int, ...]]] = [(torch.int32, (tokens, 2))]
        shapes.append((dtype, (1, tokens, header.dimensions)))
        shapes += [(torch.bfloat16, (1, header.dimensions))] * header.scaled
        of_piece = []
        for kind, shape in shapes:
            end = start + prod(shape) * kind.itemsize
            of_piece.append(_Section(kind, shape, start, end))
            start = end + -end % _ALIGNED
        yield of_piece


def _checksum(key: str, content: bytes | memoryview) -> bytes:
    return zlib.crc32(content, zlib.crc32(key.encode())).to_bytes(_CHECKSUM_BYTES, "little")
