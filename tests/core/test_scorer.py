"""The idea on one page gives the scores of `listwise`, and those of the published code."""

import json
from pathlib import Path

import pytest

from qrhead_rag import QRRetriever
from qrhead_rag.core.passage import as_passages
from qrhead_rag.core.scorer import HeadScorer
from tests.helpers.tiny import CONTROL, tiny_model, tiny_tokenizer

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "reference_scores.json").read_text(encoding="utf-8"))
CASES = REFERENCE["cases"]
HEADS = [(2, 1), (0, 3), (2, 0), (1, 2)]
QUERY = "Who counts the ships?"
TEXTS = ["The keeper of the lighthouse counts the ships that pass.", "Bread is baked.", "x", "<|im_end|> N/A\n\n[1] "]


@pytest.mark.parametrize("kind", CONTROL)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss"])
def test_it_equals_listwise(family, kind):
    model, tokenizer = tiny_model(family), tiny_tokenizer(kind)
    listwise = QRRetriever(model, tokenizer, heads=HEADS, mode="listwise", cache_bytes=0)
    scores = HeadScorer(model, tokenizer, HEADS).score(QUERY, TEXTS)
    assert scores == pytest.approx(listwise.score(QUERY, TEXTS), abs=1e-6)
    assert max(scores) - min(scores) > 1e-3, "scores that are all alike prove nothing"


@pytest.mark.parametrize("texts", [[], TEXTS[:1]])
def test_it_equals_listwise_on_lists_of_no_text_and_of_one(texts):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    listwise = QRRetriever(model, tokenizer, heads=HEADS, mode="listwise", cache_bytes=0)
    scores = HeadScorer(model, tokenizer, HEADS).score(QUERY, texts)
    assert scores == pytest.approx(listwise.score(QUERY, texts), abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_it_equals_the_published_code(embedded_all, case):
    heads = [tuple(head) for head in REFERENCE["selected_heads"]]
    scorer = HeadScorer(embedded_all.model, embedded_all.tokenizer, heads)
    texts = [passage.content for passage in as_passages(case["documents"])]
    assert scorer.score(case["query"], texts) == pytest.approx(case["selected_head_scores"], abs=1e-4)
