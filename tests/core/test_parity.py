"""`listwise` computes what the published code computes: token ids, spans and every score, on the embedded model.

`tests/data/reference_scores.json` was written by the published QRRetriever procedure in float32 under eager attention.
"""

import json
from pathlib import Path

import pytest
import torch

from qrhead_rag import QRRetriever
from qrhead_rag.core.passage import as_passages
from qrhead_rag.ranking.store import store_of

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "reference_scores.json").read_text(encoding="utf-8"))
CASES = REFERENCE["cases"]
SELECTED = [tuple(head) for head in REFERENCE["selected_heads"]]
TOLERANCE = 1e-4

by_name = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


@pytest.fixture(scope="module")
def selected(embedded_all):
    return QRRetriever(
        embedded_all.model,
        embedded_all.tokenizer,
        heads=SELECTED,
        mode="listwise",
        model_name=embedded_all.model_name,
        cache_bytes=0,
    )


def close(scores, wanted):
    torch.testing.assert_close(torch.as_tensor(scores), torch.as_tensor(wanted), atol=TOLERANCE, rtol=0)


@by_name
def test_ids_and_spans(embedded_all, case):
    encoder = store_of(embedded_all).context
    contents = [passage.content for passage in as_passages(case["documents"])]
    prompt = encoder.tokenizer.prompt(encoder.template, contents, case["query"])
    assert prompt.ids == case["input_ids"]
    assert [[span.start, span.end - 1] for span in prompt.documents] == case["document_spans_inclusive"]
    assert [prompt.query_start, len(prompt.ids) - 1] == case["query_span_inclusive"]


@by_name
def test_scores_of_every_head_alone(embedded_all, case):
    scores = embedded_all.head_scores(case["query"], case["documents"])  # (layers * heads, documents)
    wanted = torch.tensor(case["per_head_scores"])  # (documents, layers, heads)
    close(scores, wanted.flatten(start_dim=1).T)


@by_name
def test_scores_of_all_heads_together(embedded_all, case):
    close(embedded_all.score(case["query"], case["documents"]), case["all_head_scores"])


@by_name
def test_scores_of_selected_heads_with_early_exit(selected, case):
    close(selected.score(case["query"], case["documents"]), case["selected_head_scores"])


def test_the_reference_tells_heads_and_documents_apart():
    """Scores that differ by less than the tolerance would prove nothing."""
    for case in CASES:
        scores = torch.tensor(case["selected_head_scores"])
        assert len(scores) < 2 or scores.std() > 100 * TOLERANCE
        assert torch.tensor(case["per_head_scores"]).std() > 10 * TOLERANCE


def test_rank_orders_by_these_scores(selected):
    case = CASES[0]
    ranking = selected.rank(case["query"], case["documents"])
    wanted = sorted(range(len(case["documents"])), key=lambda index: -case["selected_head_scores"][index])
    assert [ranked.index for ranked in ranking] == wanted
    close([ranked.score for ranked in ranking], [case["selected_head_scores"][index] for index in wanted])
