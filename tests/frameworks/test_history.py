"""A conversation keeps one list: a turn costs its own tokens, and what is forgotten leaves it."""

import gc
import threading
import weakref

import pytest

import qrhead_rag.frameworks.history
from qrhead_rag import QRRetriever
from qrhead_rag.core.selection import rank_order
from qrhead_rag.frameworks.history import rank_history, with_neighbours
from qrhead_rag.ranking.store import store_of
from tests.helpers.held import held_by
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

TURNS = [f"Ship {number} passed the lighthouse, and the keeper wrote it down." for number in range(12)]


class Watched:
    """A retriever of the tiny model, and the tokens of documents that it has run."""

    def __init__(self, mode="late", **options):
        model = tiny_model(max_position_embeddings=2048)
        self.retriever = QRRetriever(model, tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode, **options)
        reader = store_of(self.retriever).context.reader
        prefill, self.tokens = reader.prefill, 0

        def counted(ids, *rest, **more):
            self.tokens += ids.numel()
            return prefill(ids, *rest, **more)

        reader.prefill = counted

    def run(self, query, texts):
        """Tokens of documents that a ranking runs."""
        self.tokens = 0
        assert sorted(rank_history(self.retriever, query, texts).order) == list(range(len(texts)))
        return self.tokens


def anew(mode, query, texts):
    """The ranking by a retriever that knows nothing yet."""
    fresh = QRRetriever(
        tiny_model(max_position_embeddings=2048), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode, cache_bytes=0
    )
    return tuple(rank_order(with_neighbours(fresh.score(query, texts))))


def held_texts(retriever):
    """The texts and the bytes that are kept of a retriever's conversations."""
    return held_by(vars(qrhead_rag.frameworks.history._of_scorer[retriever])["_cache"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_a_turn_costs_its_own_tokens(mode):
    watched = Watched(mode)
    watched.run("which ships?", TURNS[:4])
    for number in range(5, len(TURNS)):
        own = watched.retriever.count_tokens(f"[{number}] {TURNS[number - 1]}")
        assert watched.run(f"which ships by turn {number}?", TURNS[:number]) == pytest.approx(own, abs=4)
        assert watched.run("and what else?", TURNS[:number]) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_a_grown_edited_and_shortened_conversation_ranks_as_a_new_one(mode):
    watched = Watched(mode)
    edited = [*TURNS[:3], "The keeper was ill and counted nothing.", *TURNS[4:9]]
    for texts in (TURNS[:5], TURNS[:9], edited, edited[1:], [*edited[1:], "", "A cat came."], ["", ""]):
        assert rank_history(watched.retriever, "who counts?", texts).order == anew(mode, "who counts?", texts)


@pytest.mark.parametrize("mode", MODES)
def test_a_forgotten_turn_leaves_with_all_that_was_read_of_it(mode):
    watched = Watched(mode)
    secret = "The door opens with 4711, " + "and nobody else may know it, " * 20
    watched.run("which ships?", [*TURNS[:5], secret, *TURNS[5:]])
    texts, before = held_texts(watched.retriever)
    assert secret in texts
    watched.run("which ships?", TURNS)
    texts, after = held_texts(watched.retriever)
    assert not any("4711" in text for text in texts)
    assert len(store_of(watched.retriever).cache) == 0
    del watched, texts
    alone = Watched(mode)
    alone.run("which ships?", TURNS)
    assert after == held_texts(alone.retriever)[1] < before


def test_a_long_conversation_is_held_once():
    watched = Watched()
    for number in range(1, len(TURNS)):
        watched.run(f"which ships by turn {number}?", TURNS[:number])
    alone = Watched()
    alone.run("which ships?", TURNS[: len(TURNS) - 1])
    assert held_texts(watched.retriever)[1] == held_texts(alone.retriever)[1]


def test_conversations_that_begin_alike_do_not_take_each_others_lists():
    watched = Watched()
    ours, theirs = ["Hello.", *TURNS], ["Hello.", *(f"Soup {number} again, says the cook." for number in range(12))]
    watched.run("what?", ours)
    watched.run("what?", theirs)
    assert watched.run("and what else?", ours) == 0
    assert watched.run("and what else?", theirs) == 0


@pytest.mark.slow
def test_a_conversation_finds_its_own_list_beside_longer_and_many_others():
    watched = Watched()
    watched.run("what?", TURNS)
    watched.run("what?", TURNS[:4])
    assert watched.run("what?", TURNS[:5]) == 0, "a longer conversation holds the turn"
    others = [[f"{number} says: {text}" for text in TURNS[:4]] for number in range(80)]
    for other in others:
        watched.run("what?", other)
    for other in others:
        assert watched.run("and what else?", other) == 0


def test_a_conversation_too_large_to_keep_costs_no_other_its_list():
    watched = Watched(cache_bytes=60_000)
    watched.run("what?", TURNS)
    watched.run("what?", [f"{text} {number}" for number in range(20) for text in TURNS])
    assert watched.run("and what else?", TURNS) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_question_longer_than_the_context_is_cut_to_its_end(mode):
    watched = Watched(mode, context_length=400)
    watched.run("which ships?", TURNS[:4])
    question = "So it was said again and again. " * 60 + "Which ship passed?"
    with pytest.warns(UserWarning, match="ranked by its end"):
        ranking = rank_history(watched.retriever, question, TURNS[:4])
    assert sorted(ranking.order) == [0, 1, 2, 3]
    if mode != "listwise":  # which reads it in windows then
        assert watched.run("and what else?", TURNS[:4]) == 0


def test_a_conversation_that_outgrows_the_context_leaves_its_list():
    watched = Watched("listwise", context_length=400)
    watched.run("which ships?", TURNS[:4])
    with pytest.warns(UserWarning, match="sliding windows"):
        watched.run("which ships?", TURNS)
    assert held_texts(watched.retriever) == (set(), 0)


def test_what_is_kept_stays_within_the_bound_of_the_retriever():
    none = Watched(cache_bytes=0)
    context = store_of(none.retriever).context
    opening = len(context.tokenizer.opening(context.template))  # which is run once a retriever
    assert none.run("what?", TURNS) - opening == none.run("and what else?", TURNS) > 0
    bounded = Watched(cache_bytes=60_000)
    lists = [[f"{name} says {text}" for text in TURNS] for name in "abc"]
    for texts in lists:
        bounded.run("what?", texts)
    assert 0 < held_texts(bounded.retriever)[1] <= 60_000
    assert bounded.run("and what else?", lists[-1]) == 0
    assert bounded.run("and what else?", lists[0]) > 0


def test_the_same_question_about_the_same_history_is_ranked_once(monkeypatch):
    watched = Watched()
    texts = ["the keeper counts ships", "the lighthouse is tall", "", "soup again"]
    reader, passes = store_of(watched.retriever).context.reader, []
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda *args, **more: passes.append(1) or read(*args, **more))
    first = rank_history(watched.retriever, "who counts?", texts)
    assert first.order == anew("late", "who counts?", texts)
    assert rank_history(watched.retriever, "who counts?", list(texts)) == first
    assert len(passes) == 1
    rank_history(watched.retriever, "who counts?", [*texts, "one more"])
    rank_history(watched.retriever, "what is tall?", texts)
    assert len(passes) == 3


@pytest.mark.slow
def test_many_threads_rank_their_own_conversations():
    watched, rankings = Watched(), {}
    lists = [[f"{name} says {text}" for text in TURNS[:5]] for name in "abcdefgh"]

    def ask(number):
        for end in range(2, 6):
            rankings[number, end] = rank_history(watched.retriever, "who counts?", lists[number][:end])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(lists))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (number, end), ranking in rankings.items():
        assert ranking.order == anew("late", "who counts?", lists[number][:end])


@pytest.mark.slow
def test_nothing_is_kept_of_a_retriever_that_is_gone():
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode="late")
    rank_history(retriever, "what?", TURNS)
    conversations = weakref.ref(qrhead_rag.frameworks.history._of_scorer[retriever])
    del retriever
    gc.collect()
    assert conversations() is None


def test_windows_of_a_long_list_give_their_own_order():
    scorer = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)])
    texts = [f"the keeper counts ship number {number} and pours the tea" for number in range(40)]
    with pytest.warns(UserWarning, match="sliding windows"):
        ranked = scorer.rank("how many ships?", texts)
    assert ranked.windowed
    with pytest.warns(UserWarning, match="sliding windows"):
        assert list(rank_history(scorer, "how many ships?", texts).order) == [passage.index for passage in ranked]


def test_a_turn_gains_from_the_turns_beside_it_and_never_loses():
    assert with_neighbours([0.0, 2.0, 0.0, 0.0]) == pytest.approx([0.6, 2.0, 0.6, 0.0])
    assert with_neighbours([-1.0, 0.5]) == pytest.approx([-0.85, 0.5])
    assert with_neighbours([]) == []
