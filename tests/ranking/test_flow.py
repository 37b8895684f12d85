"""How data flows through a ranking: what is tokenized, what is held, and what stays off the public face."""

import pickle
import threading
import warnings

import pytest

from qrhead_rag import EncodedPassages, Passage, QRRetriever, RankedPassage, Ranking
from qrhead_rag.ranking import modes
from qrhead_rag.ranking.context import ListTooLongError, check_length
from qrhead_rag.ranking.per_passage import Late
from qrhead_rag.ranking.store import store_of
from tests.helpers.held import held_by
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "who counts the ships?"
DOCUMENTS = [f"Ship {number} passed the lighthouse, and the keeper wrote it down. " * 3 for number in range(30)]
CHARACTERS = sum(map(len, DOCUMENTS))


def make(mode, **options):
    return QRRetriever(tiny_model(max_position_embeddings=8192), tiny_tokenizer(), heads=HEADS, mode=mode, **options)


class Counting:
    """A tokenizer's backend that counts the characters that it is given."""

    def __init__(self, backend):
        self.backend, self.characters = backend, 0

    def encode(self, text, **options):
        self.characters += len(text)
        return self.backend.encode(text, **options)


@pytest.fixture
def counted(monkeypatch):
    """Characters that are tokenized while something is done."""

    def count(retriever, action):
        tokenizer = store_of(retriever).context.tokenizer
        counting = Counting(tokenizer._plain)
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "_plain", counting)
            action()
        return counting.characters

    return count


@pytest.mark.parametrize("mode", MODES)
def test_a_ranking_tokenizes_the_whole_list_once_and_a_warm_one_only_what_follows_it(mode, counted):
    retriever = make(mode)
    cold = counted(retriever, lambda: retriever.rank(QUERY, DOCUMENTS))
    assert CHARACTERS <= cold < 1.5 * CHARACTERS
    for query in (QUERY, "which ship was last?"):
        assert counted(retriever, lambda query=query: retriever.rank(query, DOCUMENTS)) < CHARACTERS / 4


@pytest.mark.parametrize("mode", MODES)
def test_an_encoded_list_is_tokenized_once(mode, counted):
    retriever, encoded = make(mode), []
    assert counted(retriever, lambda: encoded.append(retriever.encode(DOCUMENTS))) < 1.5 * CHARACTERS
    assert counted(retriever, lambda: encoded[0].rank(QUERY)) < CHARACTERS / 4
    queries = ["which ship was last?", "who wrote it down?"]
    assert counted(retriever, lambda: encoded[0].rank_queries(queries)) < CHARACTERS / 4


def test_a_list_ranked_by_score_is_tokenized_once_too(counted):
    retriever = make("listwise")
    assert counted(retriever, lambda: retriever.score(QUERY, DOCUMENTS)) < 1.5 * CHARACTERS
    assert counted(retriever, lambda: retriever.head_scores("which one?", DOCUMENTS)) < CHARACTERS / 4


@pytest.mark.parametrize("readout", ["published", "evidence"])
def test_under_independent_a_token_is_held_once(readout):
    """By the retriever's cache and a list together: layers x 2 x key heads x head size x 4 bytes, and little more."""
    retriever = make("independent", readout=readout)
    encoded = retriever.encode(DOCUMENTS)
    encoded.rank(QUERY)
    retriever.rank(QUERY, DOCUMENTS)
    retriever.rank(QUERY, DOCUMENTS[::-1])
    store, config = store_of(retriever), retriever.model.config
    tokens = sum(len(store.context.tokenizer.passage(text)[0]) for text in DOCUMENTS)
    layers = 1 + max(layer for layer, _ in HEADS)
    wanted = layers * 2 * config.num_key_value_heads * config.head_dim * 4
    offsets, baseline = 2 * 4, len(HEADS) * 4
    nulls = 2 * baseline if readout == "published" else 0  # of the two orders, in the cache
    _, num_bytes = held_by([encoded, list(store.cache)])
    assert wanted * tokens <= num_bytes <= (wanted + offsets + baseline + nulls) * tokens
    assert encoded.nbytes == (wanted + offsets + baseline) * tokens
    assert store.nbytes == (wanted + offsets + nulls) * tokens + store.opening.nbytes


@pytest.mark.parametrize("mode", ["independent", "late"])
def test_a_list_refers_to_the_tensors_of_the_cache(mode):
    retriever = make(mode)
    encoded, cache = retriever.encode(DOCUMENTS), store_of(retriever).cache
    assert held_by([encoded, list(cache)])[1] == held_by(encoded)[1] == cache.nbytes
    cache.clear()
    assert encoded.rank(QUERY)[0].score == pytest.approx(make(mode).rank(QUERY, DOCUMENTS)[0].score, abs=1e-5)


@pytest.mark.parametrize("mode", ["independent", "late"])
def test_the_opening_is_run_once_a_retriever(mode, monkeypatch):
    retriever = make(mode, cache_bytes=0)
    context, run = store_of(retriever).context, []
    opening, prefill = context.tokenizer.opening(context.template), context.reader.prefill
    monkeypatch.setattr(
        context.reader,
        "prefill",
        lambda ids, *rest, **more: run.append(ids.tolist()) or prefill(ids, *rest, **more),
    )
    for documents in (DOCUMENTS[:2], DOCUMENTS[2:4]):
        retriever.rank(QUERY, documents)
        retriever.encode(documents).rank(QUERY)
    assert run.count([opening]) == 1


class LockTakenOnce:
    """A lock that whoever holds it may not take again."""

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        assert self.lock.acquire(blocking=False), "taken again by a call that holds it"

    def __exit__(self, *error):
        self.lock.release()

    def give_way(self):
        assert self.lock.locked()
        return False


@pytest.mark.parametrize("mode", MODES)
def test_no_call_takes_the_lock_again(mode, tmp_path):
    retriever = make(mode, context_length=2000)
    object.__setattr__(store_of(retriever).context, "model_lock", LockTakenOnce())
    retriever.rank(QUERY, DOCUMENTS[:9], max_tokens=100)
    retriever.score(QUERY, DOCUMENTS[:9])
    retriever.head_scores(QUERY, DOCUMENTS[:9])
    retriever.rank_lists([QUERY], [DOCUMENTS[:9]])
    assert retriever.needs_windows(QUERY, DOCUMENTS) == (mode == "listwise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert retriever.rank(QUERY, DOCUMENTS, max_tokens=100).windowed == (mode == "listwise")
    encoded = retriever.encode(DOCUMENTS[:9])
    encoded.extend(["One more."])
    encoded.remove(0)
    encoded.rank_queries([QUERY, "what?"], max_tokens=100)
    assert (len(encoded.score(QUERY)), encoded.head_scores(QUERY).shape[1]) == (9, 9)
    assert encoded.nbytes > retriever.count_tokens(QUERY)
    if issubclass(modes.MODES[mode], Late):
        encoded.save(tmp_path / "part-0.safetensors")
        assert len(EncodedPassages.load(tmp_path, retriever)) == 9


def test_internals_are_not_on_the_public_face():
    retriever = make("late")
    for holder, names in ((retriever, ["encoder"]), (retriever.encode(["a"]), ["held", "scored", "rank_selected"])):
        assert not [name for name in names if hasattr(holder, name)]


def test_former_names_still_work_and_say_the_new_ones():
    retriever = make("late")
    retriever.rank(QUERY, DOCUMENTS[:3])
    with pytest.warns(DeprecationWarning, match="rank_lists") as caught:
        old = retriever.rank_batch([QUERY], [DOCUMENTS[:3]], top_n=2)
    assert warnings_of_call(caught)[0].filename == __file__
    assert old == retriever.rank_lists([QUERY], [DOCUMENTS[:3]], top_n=2)
    encoded = retriever.encode(DOCUMENTS[:3])
    encoded.rank(QUERY)
    with pytest.warns(DeprecationWarning, match="rank_queries") as caught:
        old = encoded.rank_many([QUERY], top_n=2)
    assert warnings_of_call(caught)[0].filename == __file__
    assert old == encoded.rank_queries([QUERY], top_n=2)


def test_a_ranking_made_by_hand_says_that_it_cannot_explain():
    ranked = RankedPassage(0, 1.0, Passage(text="A ship."))
    with pytest.raises(ValueError, match=r"made by hand .* QRRetriever\.rank or EncodedPassages\.rank"):
        Ranking(QUERY, (ranked,), "late").explain()


def test_whether_a_list_needs_windows():
    assert make("listwise", context_length=300).needs_windows(QUERY, DOCUMENTS)
    assert not make("listwise", context_length=300).needs_windows(QUERY, DOCUMENTS[:1])
    assert not make("listwise").needs_windows(QUERY, DOCUMENTS)
    assert not make("late", context_length=300).needs_windows(QUERY, DOCUMENTS)
    assert make("late", context_length=300).context_length == 300


def test_the_error_of_a_list_too_long_survives_pickling():
    with pytest.raises(
        ListTooLongError, match="the list is 9 tokens long, the context of the model 8; shorten it"
    ) as e:
        check_length("the list", 9, 8, "shorten it")
    copied = pickle.loads(pickle.dumps(e.value))
    assert (str(copied), copied.tokens) == (str(e.value), 9)
    check_length("the list", 8, 8, "shorten it")
    check_length("the list", 9, None, "shorten it")


@pytest.mark.parametrize("mode", MODES)
def test_a_list_without_text_is_never_run(mode):
    encoded = EncodedPassages(store_of(make(mode)), ["", " "])
    assert encoded.encode().score(QUERY) == [0.0, 0.0]
    assert encoded.head_scores(QUERY).tolist() == [[0.0, 0.0]] * len(HEADS)
    assert [ranked.index for ranked in encoded.rank_queries([QUERY, "what?"])[1]] == [0, 1]
    assert encoded.nbytes == 0
