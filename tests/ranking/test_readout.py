"""The readout `evidence`: what each of the query's own tokens finds in a document beyond the instruction before it."""

import pytest
import torch

from qrhead_rag import HeadSet, QRRetriever
from qrhead_rag.core.attention import HeadReader, Rows
from qrhead_rag.core.heads import DEFAULT_READOUTS
from qrhead_rag.ranking.asking import group_parts
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.store import store_of
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "who counts the ships?"
DOCUMENTS = [
    "The keeper counts the ships that pass.",
    "Storms came twice. They broke the lamp. " * 8,
    "",
    {"title": "Cat", "text": "A cat slept by the lamp."},
    "The lighthouse is tall.",
]


def retriever(mode, readout="evidence", **options):
    model = tiny_model(max_position_embeddings=2048)
    options = {"heads": HEADS, "piece_tokens": 64, "key_dtype": "float32"} | options
    return QRRetriever(model, tiny_tokenizer(), mode=mode, readout=readout, **options)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=tolerance, rtol=0)


def votes_by_hand(rows, prior, spans):
    """Equations (4) to (6), a number at a time. Shape: (heads, rows, tokens) and (heads, tokens) -> (heads, documents)"""
    by_head = []
    for head_rows, head_prior in zip(rows.tolist(), prior.tolist(), strict=True):
        evidence = []
        for span in spans:
            attracted = sum(head_prior[token] for token in span)
            gains = [max(sum(row[token] for token in span) - attracted, 0.0) for row in head_rows]
            evidence.append(sum(gains) / len(gains))
        by_head.append([value / sum(evidence) for value in evidence])
    return by_head


def test_listwise_evidence_by_hand():
    asked = retriever("listwise")
    context = store_of(asked).context
    texts = [document for document in DOCUMENTS if isinstance(document, str) and document]
    prompt = context.tokenizer.prompt(context.template, texts, QUERY)
    start = prompt.query_start
    own = prompt.query_tokens
    tokens = asked.tokenizer.decode(prompt.ids[own.start : own.end])
    assert tokens.strip() == QUERY
    reader = HeadReader(asked.model, HEADS)
    cache = reader.prefill(torch.tensor([prompt.ids[:start]]))

    def row(index):  # in a pass of its own that ends with it
        return reader.read(
            cache, [Rows(prompt.ids[start : index + 1], start, (range(index - start, index - start + 1),))]
        )

    rows = torch.cat([row(index) for index in range(own.start, own.end)], dim=1)
    prior = torch.cat([row(index) for index in range(start, own.start)], dim=1).mean(dim=1)
    expected = votes_by_hand(rows, prior, [range(*span) for span in prompt.documents])
    torch.testing.assert_close(asked.head_scores(QUERY, texts), torch.tensor(expected), atol=1e-5, rtol=0)
    close(asked.score(QUERY, texts), torch.tensor(expected).mean(dim=0).tolist())


@pytest.mark.parametrize("mode", MODES)
def test_warm_equals_cold_and_many_queries_equal_one(mode):
    warm, cold = retriever(mode), retriever(mode, cache_bytes=0)
    queries = [QUERY, "what broke?", "lamp", QUERY]
    expected = [cold.score(query, DOCUMENTS) for query in queries]
    for query, scores in zip(queries, expected, strict=True):
        close(warm.score(query, DOCUMENTS), scores)
    encoded = warm.encode(DOCUMENTS)
    for ranking, scores in zip(encoded.rank_queries(queries), expected, strict=True):
        close([ranked.score for ranked in sorted(ranking, key=lambda ranked: ranked.index)], scores)
    assert len(set(expected[0])) > 3, "scores that are all alike prove nothing"


def test_queries_that_need_several_passes(monkeypatch):
    whole = retriever("late").encode(DOCUMENTS)
    queries = [f"who counts the ships of day {day}?" for day in range(6)]
    expected = [[ranked.score for ranked in ranking] for ranking in whole.rank_queries(queries)]
    monkeypatch.setattr("qrhead_rag.core.attention._ROWS_AT_ONCE", 40)
    assert len(list(group_parts([Rows([1] * 30, 0)] * 3))) == 3
    for ranking, scores in zip(retriever("late").encode(DOCUMENTS).rank_queries(queries), expected, strict=True):
        close([ranked.score for ranked in ranking], scores)


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_the_order_of_the_list_does_not_matter(mode):
    scores = retriever(mode).score(QUERY, DOCUMENTS)
    order = [3, 0, 4, 2, 1]
    close(retriever(mode).score(QUERY, [DOCUMENTS[index] for index in order]), [scores[index] for index in order])


@pytest.mark.parametrize("mode", MODES)
def test_explanations_sum_to_the_score_and_none_counts_against(mode):
    ranking = retriever(mode).rank(QUERY, DOCUMENTS)
    for explained in ranking.explain():
        if explained.passage.text:
            assert sum(token.contribution for token in explained.tokens) == pytest.approx(explained.score, abs=1e-5)
            assert all(token.contribution >= 0 for token in explained.tokens)


@pytest.mark.parametrize("mode", MODES)
def test_each_head_has_one_vote(mode):
    asked = retriever(mode)
    documents = [document for document in DOCUMENTS if document]
    by_head = asked.head_scores(QUERY, documents)
    torch.testing.assert_close(by_head.sum(dim=1), torch.ones(len(HEADS)))
    close(asked.score(QUERY, documents), by_head.mean(dim=0).tolist())
    assert sum(asked.score(QUERY, documents)) == pytest.approx(1)


def test_the_best_pieces_of_a_long_document_count():
    asked = retriever("late", piece_tokens=16)
    ranking = asked.rank(QUERY, [*DOCUMENTS, "The keeper counts. " * 40])
    tokens = ranking.explain()[0].tokens
    assert ranking[0].index == 5
    one_head = retriever("late", piece_tokens=16, heads=HEADS[:1]).rank(QUERY, [*DOCUMENTS, "The keeper counts. " * 40])
    counted = [token for token in one_head.explain()[0].tokens if token.contribution > 0]
    assert 0 < len(counted) <= 3 * 16 < len(tokens)
    assert sum(token.contribution for token in tokens) == pytest.approx(ranking[0].score, abs=1e-5)


def test_windows_read_evidence_too():
    asked = retriever("listwise", context_length=220, window=2)
    with pytest.warns(UserWarning, match="sliding windows"), pytest.warns(UserWarning, match="only the beginning"):
        ranking = asked.rank(QUERY, DOCUMENTS)
    assert ranking.windowed
    assert all(ranked.score >= 0 for ranked in ranking)


def test_a_saved_list_is_asked_under_either_readout(tmp_path):
    written = retriever("late", "published").encode(DOCUMENTS)
    written.save(tmp_path / "list.safetensors")
    read = EncodedPassages.load(tmp_path / "list.safetensors", retriever("late"))
    close(read.score(QUERY), retriever("late").score(QUERY, DOCUMENTS))


@pytest.mark.parametrize("query", ["\u200b", "灯 \ud800 é", "?"])
@pytest.mark.parametrize("mode", MODES)
def test_queries_of_few_or_odd_tokens(mode, query):
    scores = retriever(mode).score(query, DOCUMENTS)
    assert torch.tensor(scores).isfinite().all()
    assert min(scores) >= 0


def test_the_readout_goes_with_the_heads():
    shape = {"model": "m", "num_layers": 4, "num_heads": 4, "heads": HEADS}
    for readout in ("published", "evidence"):
        heads = HeadSet(**shape, mode="late", readout=readout)
        assert retriever(None, None, heads=heads, model_name="m").readout == readout
        assert retriever("listwise", None, heads=heads, model_name="m").readout == DEFAULT_READOUTS["listwise"]
        assert HeadSet.model_validate_json(heads.model_dump_json()).readout == readout
    for mode in MODES:
        assert retriever(mode, None).readout == DEFAULT_READOUTS[mode]
    with pytest.raises(ValueError, match="published"):
        retriever("late", "average")
