"""Keys in 8 bits: what the rounding does to numbers, and what lists, files and components make of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import Passage, QRRetriever
from qrhead_rag.core.scoring import NotFiniteError
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.pieces import PassagePieces
from qrhead_rag.ranking.quantized import dequantize, quantize
from qrhead_rag.ranking.store import store_of
from tests.helpers.held import held_by
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "who counts the ships?"
DOCUMENTS = [
    "The keeper counts the ships that pass.",
    "Storms came twice. They broke the lamp. " * 8,  # several pieces
    Passage(title="Cat", text="A cat slept by the lamp."),
    "",
    "The lighthouse is tall.",
]


def retriever(mode="late", **options):
    options = {"piece_tokens": 64, "key_dtype": "int8"} | options
    return QRRetriever(tiny_model(max_position_embeddings=2048), tiny_tokenizer(), heads=HEADS, mode=mode, **options)


def near(scores):
    """Equal but for a key that lies between two multiples and that another batch rounds to the other one."""
    return pytest.approx(scores, abs=5e-3)


def keys_of(*shape, exponents=(0,)):
    """Random keys whose heads are of different size."""
    keys = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return keys * torch.tensor([10.0**exponent for exponent in exponents])[:, None, None]


def identical(first, second):
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_key_is_rounded_to_the_nearest_multiple(dtype):
    keys = keys_of(3, 50, 16, exponents=(-2, 0, 2)).to(dtype)
    rounded, scales = quantize(keys)
    assert (rounded.dtype, scales.dtype, scales.shape) == (torch.int8, torch.bfloat16, (3, 16))
    assert bool(((dequantize(rounded, scales) - keys.float()).abs() <= 0.5 * scales[:, None].float()).all())
    assert bool((rounded.abs().amax(dim=1) == 127).all())
    torch.testing.assert_close(127 * scales.float(), keys.float().abs().amax(dim=1), rtol=2**-8, atol=0)


def test_a_large_dimension_does_not_coarsen_the_others():
    keys = keys_of(1, 50, 4)
    large = keys * torch.tensor([1.0, 1.0, 1000.0, 1.0])
    others = [0, 1, 3]
    assert identical(dequantize(*quantize(large))[..., others], dequantize(*quantize(keys))[..., others])


@given(
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.floats(2.0**-125, 1.0, width=32),
)
def test_rounding_again_changes_nothing(numbers, factor):
    rounded, scales = quantize(torch.tensor([numbers, [[number * factor for number in row] for row in numbers]]))
    keys = dequantize(rounded, scales)
    assert bool(keys.isfinite().all())
    again, scales_again = quantize(keys)
    assert identical(scales_again, scales)
    assert identical(again, rounded)


def test_zeros_and_no_tokens_have_a_scale_too():
    for keys in (torch.zeros(2, 3, 4), torch.zeros(2, 0, 4)):
        rounded, scales = quantize(keys)
        assert bool((scales > 0).all())
        assert identical(dequantize(rounded, scales), keys)
    assert quantize(torch.full((1, 1, 2), 1e-45))[0].tolist() == [[[0, 0]]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_key_that_is_not_finite_is_read_as_not_finite(value):
    keys = keys_of(2, 5, 4, exponents=(0, 0))
    keys[1, 3, 2] = value
    read = dequantize(*quantize(keys))
    assert not bool(read[1, :, 2].isfinite().any())
    read[1, :, 2] = keys[1, :, 2] = 0
    assert identical(read, dequantize(*quantize(keys)))


def test_tokens_may_have_scales_of_their_own():
    rounded, scales = quantize(keys_of(2, 5, 4, exponents=(0, 2)))
    by_token = scales[:, None].expand(2, 5, 4)
    assert identical(dequantize(rounded, by_token), dequantize(rounded, scales))


def test_scores_are_near_those_of_float16_and_take_half_the_bytes():
    eight, half = retriever(), retriever(key_dtype="float16")
    wanted = half.score(QUERY, DOCUMENTS)
    torch.testing.assert_close(
        torch.tensor(eight.score(QUERY, DOCUMENTS)), torch.tensor(wanted), atol=0.02 * max(wanted), rtol=0
    )
    keys = [
        sum(
            tensor.nbytes
            for passage in asked.encode(DOCUMENTS).encode()._list._passages.values()
            for piece in passage.pieces
            for tensor in piece.keys
        )
        for asked in (eight, half)
    ]
    assert 2 * keys[0] == keys[1]


def test_pieces_are_what_rounding_those_of_float32_gives():
    """Whatever else ran in the batch, and however long the padding was."""
    encoded, exact = retriever().encode(DOCUMENTS).encode(), retriever(key_dtype="float32").encode(DOCUMENTS).encode()
    assert encoded._list._passages.keys() == exact._list._passages.keys()
    for text, passage in exact._list._passages.items():
        for piece, rounded in zip(passage.pieces, encoded._list._passages[text].pieces, strict=True):
            wanted, scales = quantize(piece.keys[0])
            assert identical(rounded.keys[0], wanted)
            assert identical(rounded.scales, scales)


def test_a_list_counts_its_scales():
    encoded = retriever().encode(DOCUMENTS)
    encoded.score(QUERY)
    assert encoded.nbytes == pytest.approx(held_by(encoded)[1], rel=0.02)
    piece = encoded._list._passages[DOCUMENTS[0]].pieces[0]
    assert piece.scales.nbytes > 0
    assert piece.nbytes == piece.offsets.nbytes + piece.keys[0].nbytes + piece.scales.nbytes


def test_a_warm_list_and_one_that_changes_read_as_a_new_one():
    asked = retriever()
    wanted = asked.score(QUERY, DOCUMENTS)
    assert asked.score(QUERY, DOCUMENTS) == pytest.approx(wanted, abs=1e-6)
    grown = retriever(cache_bytes=0).encode([*DOCUMENTS[:2], "Bread is baked at dawn."])
    grown.score(QUERY)
    grown.remove(2)
    grown.extend(DOCUMENTS[2:])
    assert grown.score(QUERY) == near(wanted)
    reversed_scores = asked.score(QUERY, DOCUMENTS[::-1])
    assert reversed_scores[::-1] == pytest.approx(wanted, abs=1e-5)


def test_an_explanation_sums_to_the_score():
    for explained in retriever().rank(QUERY, DOCUMENTS).explain().passages:
        if explained.passage.content.strip():
            assert sum(token.contribution for token in explained.tokens) == pytest.approx(explained.score, abs=1e-5)


def test_save_and_load_are_exact(tmp_path):
    path = tmp_path / "handbook.safetensors"
    encoded = retriever().encode(DOCUMENTS)
    encoded.save(path)
    loaded = EncodedPassages.load(path, retriever())
    assert loaded.score(QUERY) == encoded.score(QUERY)
    assert loaded.nbytes == encoded.nbytes
    parts = [tmp_path / "part-0.safetensors", tmp_path / "part-1.safetensors"]
    for part, documents in zip(parts, (DOCUMENTS[:2], DOCUMENTS[2:]), strict=True):
        retriever().encode(documents).save(part)
    joined = EncodedPassages.load(tmp_path, retriever())
    assert joined.score(QUERY) == near(encoded.score(QUERY))
    loaded.remove(1)
    loaded.extend(["One more ship."])
    wanted = retriever().score(QUERY, [DOCUMENTS[0], *DOCUMENTS[2:], "One more ship."])
    assert loaded.score(QUERY) == near(wanted)
    retriever().encode([]).save(path)
    assert len(EncodedPassages.load(path, retriever())) == 0


def test_a_file_is_for_keys_of_its_own_kind(tmp_path):
    path = tmp_path / "handbook.safetensors"
    retriever().encode(DOCUMENTS).save(path)
    with pytest.raises(ValueError, match="encoded with key_dtype int8, the retriever has key_dtype float16"):
        EncodedPassages.load(path, retriever(key_dtype="float16"))


@pytest.mark.parametrize("change", ["missing", "of another shape", "too many"])
def test_a_file_without_its_scales_is_refused(tmp_path, monkeypatch, change):
    encoded, path = retriever().encode(DOCUMENTS), tmp_path / "handbook.safetensors"
    documents, tensors = encoded._list.state()
    if change == "missing":
        del tensors["scales"]
    elif change == "too many":
        tensors["scales.0"] = tensors["scales"].clone()
    else:
        tensors["scales"] = tensors["scales"][1:]
    monkeypatch.setattr(encoded._list, "state", lambda: (documents, tensors))
    encoded.save(path)
    with pytest.raises(ValueError, match=r"cannot be used \(it holds .*scales"):
        EncodedPassages.load(path, retriever())


def test_a_document_whose_keys_are_not_finite_is_named():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (token,) = tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    asked = QRRetriever(model, tokenizer, heads=HEADS, mode="late", key_dtype="int8")
    with pytest.raises(NotFiniteError, match="layer 1, head 0 to document 2 is not finite"):
        asked.score(QUERY, ["A ship.", "", "a ~ b", "A cat."])


@pytest.mark.parametrize("mode", ["listwise", "independent"])
def test_the_other_modes_keep_what_they_keep(mode):
    same = retriever(mode).score(QUERY, DOCUMENTS)
    assert same == pytest.approx(retriever(mode, key_dtype="float16").score(QUERY, DOCUMENTS), abs=1e-6)


@pytest.mark.parametrize("component", [LangChainReranker, LlamaIndexReranker])
def test_components_pass_it_on(component, tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    reranker = component(model=folder, heads=HEADS, mode="late", device="cpu", options={"key_dtype": "int8"})
    asked = getattr(reranker, "_scorer", reranker).load_scorer()
    assert asked.options.key_dtype == "int8"
    asked.score(QUERY, DOCUMENTS)
    kept = [entry for _, entry in store_of(asked).cache if isinstance(entry, PassagePieces)]
    assert {keys.dtype for entry in kept for piece in entry.pieces for keys in piece.keys} == {torch.int8}
