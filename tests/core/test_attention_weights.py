"""The plain softmax of most families equals their own eager attention; the others keep theirs."""

import pytest
import torch

from qrhead_rag import QRRetriever
from qrhead_rag.core import attention_function
from qrhead_rag.core.attention_weights import plain_weights
from qrhead_rag.ranking.encoded import EncodedPassages
from tests.helpers.modes import MODES
from tests.helpers.tiny import FAMILIES, tiny_model, tiny_tokenizer

HEADS = [(2, 3), (1, 0), (2, 0), (1, 1), (2, 2)]  # two and three of a layer, that share key heads and do not, unsorted
DOCUMENTS = ["The keeper counts the ships.", "Storms came twice. They broke the lamp. " * 4, "", "A cat slept."]
OWN_WEIGHTS = {"gemma2", "gpt_oss"}  # soft caps, sinks


def head_scores(family, mode, readout, key_dtype="float32"):
    window = {"sliding_window": 2048} if "sliding_window" in FAMILIES[family] else {}
    model = tiny_model(family, max_position_embeddings=2048, **window)
    asked = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode, readout=readout, key_dtype=key_dtype)
    scores = asked.head_scores("who counts the ships?", DOCUMENTS)
    return scores, asked._context.reader._plain


@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_familys_own_function(family, mode, readout, monkeypatch):
    scores, plain = head_scores(family, mode, readout)
    assert plain == dict.fromkeys((1, 2), family not in OWN_WEIGHTS)
    monkeypatch.setattr(attention_function, "is_plain", lambda *_: False)
    expected, _ = head_scores(family, mode, readout)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-3, "scores that are all alike prove nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parts_of_keys_are_one(dtype):
    queries, keys = torch.randn(3, 5, 8), torch.randn(40, 24).to(dtype)[:, 8:16]  # between other heads' keys
    mask = torch.zeros(5, 40).masked_fill(torch.rand(5, 40) < 0.3, torch.finfo(torch.float32).min)
    whole = (queries @ keys.float().t() * 0.3 + mask).softmax(dim=-1)
    for sizes in ([40], [12, 20, 8], [0, 40, 0]):
        torch.testing.assert_close(plain_weights(queries, keys.split(sizes), mask, 0.3), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("key_dtype", ["float16", "int8", "float32"])
@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize("mode", MODES)
def test_a_caller_that_casts_what_runs_gets_the_same_scores(mode, readout, key_dtype):
    expected, _ = head_scores("llama", mode, readout, key_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, _ = head_scores("llama", mode, readout, key_dtype)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("key_dtype", ["float16", "int8", "float32"])
def test_a_caller_that_casts_what_runs_saves_the_same_list(key_dtype, tmp_path):
    asked = QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode="late", key_dtype=key_dtype)
    encoded, path = asked.encode(DOCUMENTS), tmp_path / "list.safetensors"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded.save(path)
    assert EncodedPassages.load(path, asked).score("who?") == pytest.approx(encoded.score("who?"), abs=1e-6)


@pytest.mark.parametrize("sink", [-3.0, 0.0, 3.0])
def test_a_sink_is_seen_however_small_it_is(sink):
    model = tiny_model("gpt_oss", max_position_embeddings=2048, sliding_window=2048)
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, sink)
    asked = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode="late")
    asked.score("who counts the ships?", ["The keeper."])
    assert not any(asked._context.reader._plain.values())


@pytest.mark.parametrize("cap", [20.0, 50.0])
def test_a_soft_cap_is_seen_however_small_the_products_are(cap):
    model = tiny_model("gemma2", attn_logit_softcapping=cap, query_pre_attn_scalar=2**14, sliding_window=2048)
    asked = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode="late")
    asked.score("who counts the ships?", ["The keeper."])
    assert not any(asked._context.reader._plain.values())
