"""An encoded passage as bytes: the same tensors come back, and what was changed is refused."""

import json
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrhead_rag.ranking.passage_bytes import DamagedValueError, _parsed, from_bytes, to_bytes
from qrhead_rag.ranking.pieces import PassagePieces, Piece
from qrhead_rag.ranking.quantized import quantize

CPU = torch.device("cpu")


def passage(tokens=(5, 3), dtype=torch.float16, dimensions=48):
    generator = torch.Generator().manual_seed(sum(tokens))
    pieces = []
    for count in tokens:
        keys = torch.randn(1, count, dimensions, generator=generator)
        offsets = torch.arange(2 * count, dtype=torch.int32).reshape(count, 2)
        keys, scales = quantize(keys) if dtype == torch.int8 else (keys.to(dtype), None)
        pieces.append(Piece(offsets, (keys,), scales=scales))
    return PassagePieces(tuple(pieces))


def assert_equal(actual, expected):
    assert len(actual.pieces) == len(expected.pieces)
    for mine, theirs in zip(actual.pieces, expected.pieces, strict=True):
        assert (mine.scales is None) == (theirs.scales is None)
        pairs = [(mine.offsets, theirs.offsets), *zip(mine.keys, theirs.keys, strict=True)]
        pairs += [] if mine.scales is None else [(mine.scales, theirs.scales)]
        for ours, others in pairs:
            assert ours.dtype == others.dtype
            assert torch.equal(ours, others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("tokens", [(1,), (7,), (5, 3, 1)])
def test_round_trip(dtype, tokens):
    original = passage(tokens, dtype)
    assert_equal(from_bytes("key", to_bytes("key", original), CPU), original)


def test_a_slice_of_a_batch_is_written_alone():
    """Pieces of a batch are views of larger tensors, which are not contiguous."""
    whole = torch.randn(1, 10, 16)
    piece = Piece(torch.zeros(4, 2, dtype=torch.int32), (whole[:, 3:7],))
    value = to_bytes("key", PassagePieces((piece,)))
    assert_equal(from_bytes("key", value, CPU), PassagePieces((piece,)))
    assert len(value) < 4 * 16 * 4 + 4 * 8 + 400


VALUE = to_bytes("key", passage())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_byte_and_any_cut_is_refused(data):
    place = data.draw(st.integers(0, len(VALUE) - 1))
    changed = bytearray(VALUE)
    changed[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(changed), VALUE[:place], VALUE + b"\0"):
        with pytest.raises(DamagedValueError):
            from_bytes("key", damaged, CPU)


def test_a_value_of_another_key_is_refused():
    with pytest.raises(DamagedValueError, match="written for another passage"):
        from_bytes("other", VALUE, CPU)


def with_checksum(content):
    return zlib.crc32(b"key" + content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[1]",
        b"{}",
        b"[" * 100_000,
        b'{"format": 2, "tokens": [], "dtype": "float16", "dimensions": 8, "scaled": false}',
        b'{"format": 2, "tokens": [2], "dtype": "load", "dimensions": 8, "scaled": false}',
        b'{"format": 2, "tokens": [-2], "dtype": "float16", "dimensions": 8, "scaled": false}',
        b'{"format": 2, "tokens": [2], "dtype": "float16", "dimensions": 0, "scaled": false}',
        b'{"format": 2, "tokens": [2], "dtype": "float16", "dimensions": 8, "scaled": false, "layers": [0]}',
        b'{"format": 2, "tokens": [99999999999], "dtype": "float16", "dimensions": 99, "scaled": true}',
    ],
)
def test_a_header_of_nonsense_is_refused_whatever_its_checksum(header):
    with pytest.raises(DamagedValueError):
        from_bytes("key", with_checksum(len(header).to_bytes(4, "little") + header), CPU)


def test_another_version_is_refused():
    length = int.from_bytes(VALUE[4:8], "little")
    header = json.loads(VALUE[8 : 8 + length]) | {"format": 3}
    text = json.dumps(header).encode()
    with pytest.raises(DamagedValueError, match="format is 3"):
        from_bytes("key", with_checksum(len(text).to_bytes(4, "little") + text + VALUE[8 + length :]), CPU)


def test_large_headers_are_not_kept():
    before = _parsed.cache_info().currsize
    header = {"format": 2, "tokens": [1] * 5000, "dtype": "float16", "dimensions": 8, "scaled": False}
    text = json.dumps(header).encode()
    with pytest.raises(DamagedValueError, match="tensors have 0 bytes"):
        from_bytes("key", with_checksum(len(text).to_bytes(4, "little") + text), CPU)
    assert _parsed.cache_info().currsize == before


def test_a_header_length_beyond_the_value_is_refused():
    with pytest.raises(DamagedValueError):
        from_bytes("key", with_checksum(b"\xff\xff\xff\xff" + b"{}"), CPU)
