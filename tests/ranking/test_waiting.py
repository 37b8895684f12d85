"""Queries of several threads that wait for the same list are asked in one pass."""

import threading
import time

import pytest

from qrhead_rag import QRRetriever
from qrhead_rag.ranking import waiting
from qrhead_rag.ranking.context import ListTooLongError
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

DOCUMENTS = ["The keeper counts the ships.", "Bread is baked at dawn.", "", "The lighthouse is tall."]
QUERIES = [f"Who counts the {what}?" for what in ("ships", "bread", "fog", "lamps", "cats", "bells", "piers", "soup")]
WAIT = 20  # seconds, in which a thread that is going to run has run


def make(mode, **options):
    heads = [(1, 0), (1, 3), (2, 1), (2, 2)]
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=heads, mode=mode, **options)


def passes_of(encoded):
    """Grows by one with each pass of the model."""
    passes = []
    encoded._context.reader._decoder.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: passes.append(1)
    )
    return passes


def at_once(encoded, calls):
    """What each call gives or raises, where all of them wait for the list together, in this order."""
    results = [None] * len(calls)

    def run(number, call):
        try:
            results[number] = call()
        except Exception as error:
            results[number] = error

    lock = encoded._context.lock
    threads = [threading.Thread(target=run, args=work, daemon=True) for work in enumerate(calls)]
    with lock:
        for number, thread in enumerate(threads, start=1):
            thread.start()
            end = time.monotonic() + WAIT
            while len(lock._line) < number:
                assert time.monotonic() < end
                time.sleep(0.001)
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert encoded._waiting._waiting == []
    return results


def scoring(encoded, queries):
    return [lambda query=query: encoded.score(query) for query in queries]


@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize("mode", MODES)
def test_queries_of_eight_threads_share_a_pass(mode, readout):
    encoded, alone = make(mode, readout=readout).encode(DOCUMENTS), make(mode, readout=readout).encode(DOCUMENTS)
    expected = [alone.score(query) for query in QUERIES]
    encoded.score("What is known?")  # the baseline and the prompt up to the query
    passes = passes_of(encoded)
    scores = at_once(encoded, scoring(encoded, QUERIES))
    assert len(passes) == 1
    for shared, single in zip(scores, expected, strict=True):
        assert shared == pytest.approx(single, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_query_that_fails_is_its_own_callers_matter(mode):
    options = {"context_length": 220}
    encoded, alone = make(mode, **options).encode(DOCUMENTS), make(mode, **options).encode(DOCUMENTS)
    queries = [*QUERIES[:2], "which ships " * 200, *QUERIES[2:4]]
    results = at_once(encoded, scoring(encoded, queries))
    assert isinstance(results[2], ListTooLongError)
    for query, scores in zip(queries, results, strict=True):
        if scores is not results[2]:
            assert scores == pytest.approx(alone.score(query), abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_thread_leaves_the_queries_of_the_others(mode):
    encoded, alone = make(mode).encode(DOCUMENTS), make(mode).encode(DOCUMENTS)
    interrupts, caught = [KeyboardInterrupt], []

    def interrupt(module, inputs):
        if interrupts:
            raise interrupts.pop()

    def interrupted():
        try:
            encoded.score(QUERIES[0])
        except KeyboardInterrupt as error:
            caught.append(error)

    encoded._context.reader._decoder.get_input_embeddings().register_forward_pre_hook(interrupt)
    results = at_once(encoded, [interrupted, *scoring(encoded, QUERIES[1:4])])
    assert len(caught) == 1
    for query, scores in zip(QUERIES[1:4], results[1:], strict=True):
        assert scores == pytest.approx(alone.score(query), abs=1e-6)


def test_a_pass_has_no_more_queries_than_its_bound(monkeypatch):
    monkeypatch.setattr(waiting, "_QUERIES_TOGETHER", 3)
    encoded, alone = make("late").encode(DOCUMENTS), make("late").encode(DOCUMENTS)
    asked, ask = [], encoded._list.ask
    monkeypatch.setattr(encoded._list, "ask", lambda queries: asked.append(len(queries)) or ask(queries))
    calls = [*scoring(encoded, QUERIES[:2]), lambda: encoded.rank_queries(QUERIES[:2]), *scoring(encoded, QUERIES[2:5])]
    calls.append(lambda: encoded.rank_queries(QUERIES))  # more by itself, and alone
    results = at_once(encoded, calls)
    assert asked == [3, 3, 1, 8]
    for number, queries in ((2, QUERIES[:2]), (6, QUERIES)):
        for shared, single in zip(results[number], alone.rank_queries(queries), strict=True):
            assert [p.score for p in shared] == pytest.approx([p.score for p in single], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_what_changes_the_list_keeps_its_turn(mode):
    """A query that waits before a change may be answered before or after it, one that waits behind it only after."""
    encoded, alone = make(mode).encode(DOCUMENTS), make(mode)
    first, _, last = at_once(
        encoded,
        [lambda: encoded.rank(QUERIES[0]), lambda: encoded.extend(["One more."]), lambda: encoded.rank(QUERIES[1])],
    )
    assert len(first) == len(DOCUMENTS)
    assert len(last) in (len(DOCUMENTS), len(DOCUMENTS) + 1)
    assert [ranked.score for ranked in last] == pytest.approx(
        [ranked.score for ranked in alone.rank(QUERIES[1], [*DOCUMENTS, "One more."][: len(last)])], abs=1e-6
    )
