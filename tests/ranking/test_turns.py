"""Threads take turns: a short list does not wait for a long one, and no interleaving changes a score."""

import threading
import time

import pytest

from qrhead_rag import QRRetriever
from qrhead_rag.frameworks.history import rank_history
from qrhead_rag.ranking.store import store_of
from tests.helpers.modes import PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY, OTHER = "Who counts the ships?", "What is baked?"
LONG = [f"The keeper of house {number} counts the ships that pass in the fog." for number in range(9)]
SHORT = ["Bread is baked at dawn.", "A cat slept in the harbour."]
WAIT = 20  # seconds, in which a thread that is going to run has run

per_passage = pytest.mark.parametrize("mode", PER_PASSAGE_MODES)


def make(mode="late", **options):
    """Every batch has one passage."""
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode=mode, **{"batch_tokens": 1} | options)


class Passes:
    """The passes of a retriever's model: sequences counted, and what is done in some of the main thread's."""

    def __init__(self, retriever, actions=None):
        self.actions, self.rows, self.of_main = dict(actions or {}), 0, 0
        retriever.model.get_input_embeddings().register_forward_pre_hook(self.on_pass)

    def on_pass(self, module, inputs):
        self.rows += len(inputs[0])
        if threading.current_thread() is threading.main_thread():
            self.of_main += 1
            self.actions.pop(self.of_main, lambda: None)()


class Meanwhile:
    """Work of another thread that is begun in a pass of the main thread."""

    def __init__(self, retriever, work):
        self.lock, self.results, self.errors = store_of(retriever).context.lock, [], []
        self.thread = threading.Thread(target=self.run, args=(work,), daemon=True)

    def run(self, work):
        try:
            self.results.append(work())
        except BaseException as error:
            self.errors.append(error)

    def begin(self):
        self.thread.start()
        end = time.monotonic() + WAIT
        while not self.lock._line:
            assert time.monotonic() < end, "the other thread does not ask for the lock"
            time.sleep(0.001)

    def end(self):
        self.thread.join(WAIT)
        assert not self.thread.is_alive(), "the other thread waits for the whole of this one's work"
        assert self.errors == []


def with_another(retriever, work, other, done_at=6):
    """What the work gives, and what other work gives that begins in the middle of it.

    Args:
        retriever: of both.
        work: of the main thread, in more than six passes.
        other: of another thread, begun in the fourth of them.
        done_at: the pass of the main thread in which it has to be done; None where it may take longer.
    """
    meanwhile = Meanwhile(retriever, other)
    passes = Passes(retriever, {4: meanwhile.begin} | ({done_at: meanwhile.end} if done_at else {}))
    result = work()
    meanwhile.end()
    assert not passes.actions, "the work ended too early"
    return result, meanwhile.results[0], passes


@per_passage
def test_a_short_list_does_not_wait_for_a_long_one(mode):
    retriever, alone = make(mode), make(mode)
    long, short, _ = with_another(
        retriever, lambda: retriever.score(QUERY, LONG), lambda: retriever.score(OTHER, SHORT)
    )
    assert long == alone.score(QUERY, LONG)
    assert short == alone.score(OTHER, SHORT)


@per_passage
def test_nor_does_it_wait_for_passages_that_are_encoded(mode):
    retriever, alone = make(mode), make(mode)
    encoded, ranking, _ = with_another(
        retriever, lambda: retriever.encode(LONG, show_progress=True), lambda: retriever.rank(OTHER, SHORT)
    )
    assert ranking == alone.rank(OTHER, SHORT)
    assert encoded.score(QUERY) == alone.encode(LONG).score(QUERY)


@per_passage
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_long_list_that_is_stopped_leaves_the_short_one_alone(mode, error):
    retriever, alone = make(mode), make(mode)
    meanwhile = Meanwhile(retriever, lambda: retriever.score(OTHER, SHORT))

    def stop():
        meanwhile.end()
        raise error

    Passes(retriever, {4: meanwhile.begin, 6: stop})
    with pytest.raises(error):
        retriever.score(QUERY, LONG)
    assert meanwhile.results == [alone.score(OTHER, SHORT)]
    assert retriever.score(QUERY, LONG) == alone.score(QUERY, LONG)
    assert meanwhile.lock._line == []


@per_passage
def test_the_long_list_survives_a_short_one_that_fails(mode):
    retriever, alone = make(mode, context_length=150), make(mode, context_length=150)

    def fail():
        with pytest.raises(ValueError, match="shorter query"):
            retriever.score("which ships " * 100, SHORT)

    long, _, _ = with_another(retriever, lambda: retriever.score(QUERY, LONG), fail, done_at=None)
    assert long == alone.score(QUERY, LONG)


@per_passage
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_threads_with_the_same_list_run_each_passage_once(mode, cache_bytes):
    retriever, alone = make(mode, cache_bytes=cache_bytes), make(mode)
    expected = [alone.score(query, LONG) for query in (QUERY, OTHER)]
    first, second, passes = with_another(
        retriever, lambda: retriever.score(QUERY, LONG), lambda: retriever.score(OTHER, LONG), done_at=None
    )
    assert first == pytest.approx(expected[0], abs=1e-6)
    assert second == pytest.approx(expected[1], abs=1e-6)
    passages = Passes(alone)
    store_of(alone).clear()
    alone.encode(LONG)
    again = 0 if cache_bytes else 1  # without a cache, what the first thread runs last is forgotten as it ends
    assert passes.rows == passages.rows + 2 + again


CHANGES = {
    "remove": (lambda encoded: encoded.remove(0), LONG[1:]),
    "extend": (lambda encoded: encoded.extend(SHORT), LONG + SHORT),
    "clear": (lambda encoded: encoded._store.clear(), LONG),
    "score": (lambda encoded: encoded.score(OTHER), LONG),
}


@per_passage
@pytest.mark.parametrize("readout", ["published", "evidence"])
@pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES)
def test_a_list_that_changes_while_it_is_encoded_is_asked_as_it_was(mode, readout, change, after, tmp_path):
    retriever, alone = make(mode, readout=readout, cache_bytes=0), make(mode, readout=readout)
    encoded = retriever.encode([])
    encoded.extend(LONG)

    def changed():
        with encoded._context.lock:
            return change(encoded)

    scores, _, _ = with_another(retriever, lambda: encoded.score(QUERY), changed, done_at=None)
    assert scores == pytest.approx(alone.score(QUERY, LONG), abs=1e-6)
    assert encoded.score(QUERY) == pytest.approx(alone.score(QUERY, after), abs=1e-6)
    assert encoded.score(OTHER) == pytest.approx(alone.score(OTHER, after), abs=1e-6)
    fresh = alone.encode(after)
    fresh.score(OTHER)
    assert encoded.nbytes == fresh.nbytes


def test_a_file_holds_the_list_as_it_was_when_it_was_saved(tmp_path):
    retriever = make()
    encoded = retriever.encode([])
    encoded.extend(LONG)
    with_another(retriever, lambda: encoded.save(tmp_path / "saved"), lambda: encoded.remove(0))
    loaded = type(encoded).load(tmp_path / "saved", make())
    assert [passage.text for passage in loaded] == LONG
    assert loaded.score(QUERY) == pytest.approx(make().score(QUERY, LONG), abs=1e-3)  # keys in half precision


@per_passage
def test_a_conversation_ranked_by_two_threads(mode):
    retriever, alone = make(mode), make(mode)
    longer = [*LONG[2:], *SHORT]
    first, second, _ = with_another(
        retriever,
        lambda: rank_history(retriever, QUERY, LONG),
        lambda: rank_history(retriever, OTHER, longer),
        done_at=None,
    )
    assert first.order == rank_history(alone, QUERY, LONG).order
    assert second.order == rank_history(alone, OTHER, longer).order
    assert rank_history(retriever, QUERY, longer).order == rank_history(alone, QUERY, longer).order


def test_what_nobody_holds_is_run_again():
    retriever = make(cache_bytes=0)
    encoded = retriever.encode(LONG)
    passes = Passes(retriever)
    other = retriever.encode(LONG)
    assert passes.rows == 0, "the first list has them"
    del encoded, other
    retriever.encode(LONG)
    assert passes.rows == len(LONG)
    assert len(store_of(retriever).pieces) == 0
