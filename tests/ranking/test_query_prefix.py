"""Under `late` the prompt up to the query is run once and kept: scores are those of running it with every query."""

import pytest
import torch

from qrhead_rag import QRRetriever
from qrhead_rag.core.attention import HeadReader
from qrhead_rag.ranking.per_passage import Late
from qrhead_rag.ranking.store import _PREFIXES_KEPT, store_of
from tests.helpers.modes import MODES
from tests.helpers.tiny import FAMILIES, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERIES = [
    "who counts the ships?",
    "what broke?",
    ": what stands before it may merge with it",
    "\u200b",
    "  who, with spaces around?  ",
    "N/A",
]
DOCUMENTS = ["The keeper counts the ships.", "Storms came twice. They broke the lamp. " * 4, "", "A cat slept."]


def retriever(family="llama", kind="chatml", **options):
    changes = {"max_position_embeddings": 2048}
    changes |= {"sliding_window": 2048} if "sliding_window" in FAMILIES[family] else {}
    options = {"piece_tokens": 64, "key_dtype": "float32"} | options
    return QRRetriever(tiny_model(family, **changes), tiny_tokenizer(kind), heads=HEADS, mode="late", **options)


def without_prefix(monkeypatch, action):
    with monkeypatch.context() as patch:
        patch.setattr(Late, "_prefix", lambda self, parts: None)
        return action()


def close(actual, expected):
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize("kind", ["chatml", "llama3", "other", "plain"])
def test_scores_are_those_of_running_everything(kind, readout, monkeypatch):
    asked = retriever(kind=kind, readout=readout)
    for query in QUERIES:
        expected = without_prefix(monkeypatch, lambda query=query: asked.head_scores(query, DOCUMENTS).tolist())
        close(asked.head_scores(query, DOCUMENTS).tolist(), expected)
    assert len(set(asked.score(QUERIES[0], DOCUMENTS))) > 2, "scores that are all alike prove nothing"
    encoded = asked.encode(DOCUMENTS)
    for ranking, query in zip(encoded.rank_queries(QUERIES), QUERIES, strict=True):
        close(
            [ranked.score for ranked in sorted(ranking, key=lambda ranked: ranked.index)], asked.score(query, DOCUMENTS)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, monkeypatch):
    asked = retriever(family)
    expected = without_prefix(monkeypatch, lambda: asked.head_scores(QUERIES[0], DOCUMENTS).tolist())
    close(asked.head_scores(QUERIES[0], DOCUMENTS).tolist(), expected)


def test_a_warm_query_runs_its_own_tokens_alone():
    asked, ran = retriever(), []
    encoded = asked.encode(DOCUMENTS)
    encoded.score("what broke?")
    asked.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: ran.append(inputs[0]))
    encoded.score(QUERIES[0])
    assert [asked.tokenizer.decode(ids[0]).strip() for ids in ran] == [QUERIES[0]]


@pytest.mark.parametrize("mode", MODES)
def test_what_the_instruction_attracts_is_read_once_a_list(mode, monkeypatch):
    model = tiny_model(max_position_embeddings=2048)
    asked = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode, readout="evidence", cache_bytes=0)
    encoded, read, plain = asked.encode(DOCUMENTS), [], HeadReader.read
    monkeypatch.setattr(
        HeadReader, "read", lambda *args, **rest: read.append(args[2][0].readings) or plain(*args, **rest)
    )
    for query in [*QUERIES, *QUERIES]:
        close(encoded.score(query), asked.score(query, DOCUMENTS))
    read.clear()
    encoded.score(QUERIES[0])
    encoded.score(QUERIES[0])
    assert read[0][1:] == read[1]
    encoded.extend(["One more ship."])
    close(encoded.score(QUERIES[0]), asked.score(QUERIES[0], [*DOCUMENTS, "One more ship."]))
    assert read[2] == read[0]


def test_no_more_prefixes_are_kept_than_serve():
    asked = retriever(piece_tokens=None)
    opening = store_of(asked).opening
    for words in range(1, _PREFIXES_KEPT + 12):
        asked.score("who?", ["ship " * words])
    assert len(opening._prefixes) == _PREFIXES_KEPT
    sizes = [prefix.nbytes for prefix in opening._prefixes.values()]
    assert opening.nbytes > sum(sizes) > 0
    store_of(asked).clear()
    assert opening.nbytes == 0
