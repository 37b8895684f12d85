"""An encoded passage as bytes: the same tensors come back, and what was changed is refused."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrhead_rag.ranking.passage_bytes import DamagedValueError, from_bytes, to_bytes
from qrhead_rag.ranking.pieces import PassagePieces, Piece

CPU = torch.device("cpu")


def passage(tokens=(5, 3), dtype=torch.float16, heads=(2, 1, 3), size=8):
    generator = torch.Generator().manual_seed(sum(tokens))
    pieces = []
    for count in tokens:
        keys = {4 * n: torch.randn(h, count, size, generator=generator) for n, h in enumerate(heads)}
        offsets = torch.arange(2 * count, dtype=torch.int32).reshape(count, 2)
        piece = Piece(offsets, keys, {})
        if dtype == torch.int8:
            pieces.append(piece.quantized())
        else:
            pieces.append(Piece(offsets, {layer: key.to(dtype) for layer, key in keys.items()}, {}))
    return PassagePieces(tuple(pieces))


def assert_equal(actual, expected):
    assert len(actual.pieces) == len(expected.pieces)
    for mine, theirs in zip(actual.pieces, expected.pieces, strict=True):
        assert mine.offsets.dtype == theirs.offsets.dtype
        assert torch.equal(mine.offsets, theirs.offsets)
        for ours, others in ((mine.keys, theirs.keys), (mine.scales, theirs.scales), (mine.values, theirs.values)):
            assert list(ours) == list(others)
            for layer, tensor in ours.items():
                assert tensor.dtype == others[layer].dtype
                assert torch.equal(tensor, others[layer])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("tokens", [(1,), (7,), (5, 3, 1)])
def test_round_trip(dtype, tokens):
    original = passage(tokens, dtype)
    assert_equal(from_bytes("key", to_bytes("key", original), CPU), original)


def test_a_slice_of_a_batch_is_written_alone():
    """Pieces of a batch are views of larger tensors, which are not contiguous."""
    whole = torch.randn(2, 10, 8)
    piece = Piece(torch.zeros(4, 2, dtype=torch.int32), {0: whole[:, 3:7]}, {})
    value = to_bytes("key", PassagePieces((piece,)))
    assert_equal(from_bytes("key", value, CPU), PassagePieces((piece,)))
    assert len(value) < 2 * 4 * 8 * 4 + 4 * 8 + 400


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
    return hashlib.sha256(b"key" + content).digest() + content


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[1]",
        b"{}",
        b"[" * 100_000,
        b'{"format": 1, "tokens": [], "layers": [], "dtype": "float16", "shapes": [], "scaled": false}',
        b'{"format": 1, "tokens": [2], "layers": [0], "dtype": "load", "shapes": [[1, 1]], "scaled": false}',
        b'{"format": 1, "tokens": [-2], "layers": [0], "dtype": "float16", "shapes": [[1, 1]], "scaled": false}',
        b'{"format": 1, "tokens": [2], "layers": [0, 1], "dtype": "float16", "shapes": [[1, 1]], "scaled": false}',
        b'{"format": 1, "tokens": [99999999999], "layers": [0], "dtype": "float16", "shapes": [[9, 9]], "scaled": true}',
    ],
)
def test_a_header_of_nonsense_is_refused_whatever_its_checksum(header):
    with pytest.raises(DamagedValueError):
        from_bytes("key", with_checksum(len(header).to_bytes(4, "little") + header), CPU)


def test_another_version_is_refused():
    length = int.from_bytes(VALUE[32:36], "little")
    header = json.loads(VALUE[36 : 36 + length]) | {"format": 2}
    text = json.dumps(header).encode()
    with pytest.raises(DamagedValueError, match="format is 2"):
        from_bytes("key", with_checksum(len(text).to_bytes(4, "little") + text + VALUE[36 + length :]), CPU)


def test_a_header_length_beyond_the_value_is_refused():
    with pytest.raises(DamagedValueError):
        from_bytes("key", with_checksum(b"\xff\xff\xff\xff" + b"{}"), CPU)
