"""A passage store: scores through it are those without, nothing stale is read, and no ranking fails by it."""

import pickle
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from langchain_core.stores import InMemoryByteStore

from qrhead_rag import Passage, PassageStore, QRRetriever
from qrhead_rag.ranking import encoding, stored
from qrhead_rag.ranking.byte_store import SqliteStore, StoreError
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "who counts the ships?"
DOCUMENTS = [
    Passage(text="The keeper counts the ships.", title="Duties"),
    "Storms came twice. They broke the lamp. " * 6,
    "",
    "A cat slept.",
    "A cat slept.",
]


def retriever(*, store=None, model=None, heads=HEADS, **options):
    options = {"piece_tokens": 32, "key_dtype": "float16"} | options
    model = model or tiny_model(max_position_embeddings=2048)
    return QRRetriever(model, tiny_tokenizer(), heads=heads, mode="late", store=store, **options)


@pytest.fixture
def nothing_runs(monkeypatch):
    """Makes the encoding of a passage an error from the moment it is called."""

    def forbid():
        monkeypatch.setattr(encoding, "_run", lambda *arguments: pytest.fail("a passage was run"))

    return forbid


class Counting(InMemoryByteStore):
    def __init__(self):
        super().__init__()
        self.calls, self.fails = [], set()

    def _call(self, name):
        self.calls.append(name)
        if name in self.fails:
            raise ConnectionError("no route to the store")

    def mget(self, keys):
        self._call("mget")
        return super().mget(keys)

    def mset(self, key_value_pairs):
        self._call("mset")
        super().mset(key_value_pairs)


class LikeRedis(InMemoryByteStore):
    """Takes a prefix for a pattern of whole keys, as LangChain's RedisStore does, and refuses to delete nothing."""

    def yield_keys(self, *, prefix=None):
        return (key for key in [*self.store] if fnmatchcase(key, prefix or "*"))

    def mdelete(self, keys):
        assert keys, "wrong number of arguments for 'del' command"
        super().mdelete(keys)


@pytest.mark.parametrize("key_dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("readout", ["published", "evidence"])
def test_scores_are_those_without_a_store(key_dtype, readout, tmp_path, nothing_runs):
    options = {"key_dtype": key_dtype, "readout": readout}
    expected = retriever(**options).head_scores(QUERY, DOCUMENTS)
    writing = retriever(store=tmp_path / "chunks.db", **options)
    torch.testing.assert_close(writing.head_scores(QUERY, DOCUMENTS), expected, atol=1e-6, rtol=0)
    nothing_runs()
    reading = retriever(store=tmp_path / "chunks.db", **options)
    torch.testing.assert_close(reading.head_scores(QUERY, DOCUMENTS), expected, atol=1e-6, rtol=0)
    other_list = [DOCUMENTS[3], DOCUMENTS[0]]
    assert len(set(reading.score(QUERY, other_list))) == 2
    assert len(reading.encode(other_list).rank(QUERY)) == 2


def test_a_query_asks_the_store_once_and_only_for_what_is_not_in_memory():
    byte_store = Counting()
    asked = retriever(store=byte_store)
    asked.rank(QUERY, DOCUMENTS)
    assert byte_store.calls[0] == "mget"
    assert set(byte_store.calls[1:]) == {"mset"}
    byte_store.calls.clear()
    asked.rank("what broke?", DOCUMENTS[1:])
    assert byte_store.calls == []
    retriever(store=byte_store).rank(QUERY, DOCUMENTS)
    assert byte_store.calls == ["mget"]


OTHERS = {
    "another model": lambda store: retriever(store=store, model=tiny_model(seed=1, max_position_embeddings=2048)),
    "another dtype": lambda store: retriever(
        store=store, model=tiny_model(dtype=torch.bfloat16, max_position_embeddings=2048)
    ),
    "other heads": lambda store: retriever(store=store, heads=[(1, 0), (2, 1)]),
    "other keys": lambda store: retriever(store=store, key_dtype="float32"),
    "8 bits": lambda store: retriever(store=store, key_dtype="int8"),
    "other pieces": lambda store: retriever(store=store, piece_tokens=64),
    "a shorter context": lambda store: retriever(store=store, piece_tokens=None, context_length=400),
    "another tokenizer": lambda store: QRRetriever(
        tiny_model(max_position_embeddings=2048), tiny_tokenizer("plain"), heads=HEADS, mode="late", store=store
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_that_was_encoded_otherwise_is_read(name):
    byte_store = Counting()
    assert retriever(store=byte_store).encode_to_store(DOCUMENTS) == 3
    with pytest.warns(UserWarning, match="none that were encoded with this retriever's"):
        assert OTHERS[name](byte_store).encode_to_store(DOCUMENTS) == 3
    assert [settings.passages for settings in PassageStore(byte_store).contents()] == [3, 3]
    # Both are there now, so that there is nothing to say.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert OTHERS[name](byte_store).encode_to_store(DOCUMENTS) == 0
        assert retriever(store=byte_store).encode_to_store(DOCUMENTS) == 0


def test_the_warning_names_what_differs():
    byte_store = Counting()
    retriever(store=byte_store).encode_to_store(DOCUMENTS)
    with pytest.warns(UserWarning, match="heads, key_dtype|heads"):
        retriever(store=byte_store, heads=[(1, 0)]).encode_to_store(DOCUMENTS)
    with pytest.warns(UserWarning, match="Counting has passages, but none .* retriever's key_dtype;"):
        retriever(store=byte_store, key_dtype="float32").rank(QUERY, DOCUMENTS)


def test_the_same_weights_under_another_readout_share_passages(nothing_runs):
    byte_store = Counting()
    evidence = retriever(store=byte_store, readout="evidence")
    evidence.encode_to_store(DOCUMENTS)
    nothing_runs()
    retriever(store=byte_store, readout="published").rank(QUERY, DOCUMENTS)
    evidence.with_readout("published").rank(QUERY, DOCUMENTS)


@pytest.mark.parametrize("damage", [lambda value: value[:-1], lambda value: b"", lambda value: value[::-1]])
def test_damaged_passages_are_encoded_again_and_said_once(damage):
    byte_store = Counting()
    expected = retriever(store=byte_store).score(QUERY, DOCUMENTS)
    for key, value in byte_store.store.items():
        if key.startswith("passages/"):
            byte_store.store[key] = damage(value)
    asked = retriever(store=byte_store)
    with pytest.warns(UserWarning, match="Counting has damaged passages") as caught:
        scores = [asked.score(QUERY, documents) for documents in (DOCUMENTS[:2], DOCUMENTS)]
    assert scores[0] == pytest.approx(retriever().score(QUERY, DOCUMENTS[:2]), abs=1e-6)
    assert scores[1] == pytest.approx(expected, abs=1e-6)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was damaged has been written anew
        assert retriever(store=byte_store).score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-6)


def test_passages_that_were_swapped_are_not_taken_for_each_other():
    byte_store = Counting()
    expected = retriever(store=byte_store).score(QUERY, DOCUMENTS)
    keys = [key for key in byte_store.store if key.startswith("passages/")]
    values = [byte_store.store[key] for key in keys]
    byte_store.store.update(zip(keys, values[1:] + values[:1], strict=True))
    with pytest.warns(UserWarning, match="written for another passage"):
        assert retriever(store=byte_store).score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("method", "words"), [("mget", "cannot be read"), ("mset", "cannot be written")])
def test_a_store_that_cannot_be_reached_fails_no_ranking(method, words, monkeypatch):
    byte_store = Counting()
    byte_store.fails.add(method)
    asked = retriever(store=byte_store, cache_bytes=0)
    with pytest.warns(
        UserWarning, match=f"Counting {words} \\(no route to the store\\); passages are encoded"
    ) as caught:
        scores = [asked.score(QUERY, DOCUMENTS) for _ in range(3)]
    assert scores == [pytest.approx(retriever().score(QUERY, DOCUMENTS), abs=1e-6)] * 3
    assert len(caught) == 1
    assert byte_store.calls.count(method) == 1, "a store that failed is left alone for a while"
    byte_store.fails.clear()
    monkeypatch.setattr(stored, "_PAUSE", 0.0)
    asked._store.stored._paused_until.clear()
    asked.score(QUERY, DOCUMENTS)
    assert byte_store.calls.count(method) > 1


def test_keys_are_listed_where_a_prefix_is_taken_for_a_pattern():
    store = PassageStore(LikeRedis())
    retriever(store=store).encode_to_store(DOCUMENTS)
    (stored,) = store.contents()
    assert [*store.check()] == [(stored.passages, [])] == [(3, [])]
    store.delete([])
    with pytest.warns(UserWarning, match="retriever's key_dtype;"):
        retriever(store=store, key_dtype="float32").encode_to_store(DOCUMENTS)
    assert store.delete_settings(stored.digest) == 3
    assert [other.settings["key_dtype"] for other in store.contents()] == ["float32"]


def test_a_store_that_gives_other_than_it_was_asked_for():
    byte_store = Counting()
    byte_store.mget = lambda keys: []
    with pytest.warns(UserWarning, match=r"mget of Counting gave 0 values for 4 keys; expected one a key"):
        retriever(store=byte_store).rank(QUERY, DOCUMENTS)


def test_ingestion_keeps_nothing_in_memory_and_counts_what_is_new(tmp_path):
    writing = retriever(store=tmp_path / "chunks.db")
    assert writing.encode_to_store(DOCUMENTS) == 3, "blank documents and equal ones are stored at most once"
    assert writing.encode_to_store([*DOCUMENTS, "Bread is baked at dawn."]) == 1
    assert len(writing._store.cache) == 0
    (stored_settings,) = PassageStore(tmp_path / "chunks.db").contents()
    assert stored_settings.passages == 4
    assert stored_settings.settings["heads"] == [list(head) for head in HEADS]


def test_ingestion_of_more_than_is_held_at_once(monkeypatch, capsys):
    monkeypatch.setattr("qrhead_rag.ranking.ingestion._AT_ONCE", 2)
    byte_store = Counting()
    texts = [f"Ship number {number} came." for number in range(7)]
    assert retriever(store=byte_store).encode_to_store(texts, show_progress=True) == 7
    assert byte_store.calls.count("mget") == 4
    assert "7/7" in capsys.readouterr().err


def test_ingestion_says_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="has no store to encode into; expected one"):
        retriever().encode_to_store(DOCUMENTS)
    byte_store = Counting()
    byte_store.fails.add("mset")
    with pytest.raises(ConnectionError):
        retriever(store=byte_store).encode_to_store(DOCUMENTS)
    (tmp_path / "text.db").write_text("no database, but a text of the user's that stays")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(StoreError, match=r"text\.db"):
        retriever(store=tmp_path / "text.db").encode_to_store(DOCUMENTS)
    assert (tmp_path / "text.db").read_text().startswith("no database")


def test_an_interrupted_encoding_keeps_what_was_done(monkeypatch):
    byte_store = Counting()
    run, done = encoding._run, []

    def interrupted(store, keep, batch):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.extend(batch)
        return run(store, keep, batch)

    asked, texts = retriever(store=byte_store, batch_tokens=1), ["One ship.", "Two came.", "Three came in.", "Four."]
    monkeypatch.setattr(encoding, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asked.encode(texts)
    assert PassageStore(byte_store).contents()[0].passages == 2
    monkeypatch.setattr(encoding, "_run", run)
    assert len(asked.rank(QUERY, texts)) == 4


def test_a_model_with_other_weights_of_the_same_shape_is_told_apart_after_training(tmp_path):
    model = tiny_model(max_position_embeddings=2048)
    retriever(store=tmp_path / "chunks.db", model=model).encode_to_store(DOCUMENTS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    with pytest.warns(UserWarning, match="retriever's weights;"):
        assert retriever(store=tmp_path / "chunks.db", model=model).encode_to_store(DOCUMENTS) == 3


@pytest.mark.parametrize("mode", ["listwise", "independent"])
def test_other_modes_keep_too_much(mode, tmp_path):
    with pytest.raises(ValueError, match=f"mode is '{mode}' and store .*; expected mode 'late'"):
        QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode=mode, store=tmp_path / "chunks.db")


@pytest.mark.parametrize("store", [3, object(), {}, b"chunks.db"])
def test_what_is_no_store_is_refused(store):
    with pytest.raises(TypeError, match=f"store is {type(store).__name__}, which has no mget.*expected a path"):
        retriever(store=store)


def test_a_store_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    retriever(store=True).encode_to_store(DOCUMENTS)
    assert PassageStore(tmp_path / "cache" / "passages.db").contents()[0].passages == 3


def test_a_retriever_is_pickled_with_its_store(tmp_path, nothing_runs):
    folder, file = save_tiny(tmp_path / "model"), str(tmp_path / "chunks.db")
    first = QRRetriever.from_pretrained(folder, heads=HEADS, mode="late", store=Path(file))
    first.encode_to_store(DOCUMENTS)
    assert first.loading_options()["store"] == file
    assert repr(first.store) == f"PassageStore({file!r})"
    nothing_runs()
    again = pickle.loads(pickle.dumps(first))
    assert again.score(QUERY, DOCUMENTS) == pytest.approx(first.score(QUERY, DOCUMENTS), abs=1e-6)


def test_what_a_store_says_of_damage(tmp_path):
    retriever(store=tmp_path / "chunks.db").encode_to_store(DOCUMENTS)
    store = PassageStore(tmp_path / "chunks.db")
    assert list(store.check()) == [(3, [])]
    byte_store = SqliteStore(tmp_path / "chunks.db")
    key = next(byte_store.yield_keys(prefix="passages/"))
    byte_store.mset([(key, b"damaged")])
    assert list(store.check()) == [(3, [key])]


@pytest.mark.embedded
def test_scores_of_the_real_model_through_a_store(embedded, tmp_path, nothing_runs):
    """`embedded` is under late with its shipped heads; here the store is read by another retriever of the same model."""
    options = {"heads": embedded.heads, "mode": "late", "model_name": embedded.model_name}
    texts = ["The ferry leaves at nine from the north pier.", "Bread is baked at dawn in the galley."]
    expected = QRRetriever(embedded.model, embedded.tokenizer, **options).score("When does the ferry leave?", texts)
    QRRetriever(embedded.model, embedded.tokenizer, store=tmp_path / "a.db", **options).encode_to_store(texts)
    nothing_runs()
    reading = QRRetriever(embedded.model, embedded.tokenizer, store=tmp_path / "a.db", **options)
    assert reading.score("When does the ferry leave?", texts) == pytest.approx(expected, abs=1e-6)
    assert expected[0] > expected[1]


def test_a_store_that_is_deleted_meanwhile_is_told_the_settings_again(tmp_path):
    writing = retriever(store=tmp_path / "chunks.db")
    writing.encode_to_store(["A cat slept."])
    (tmp_path / "chunks.db").unlink()
    assert writing.encode_to_store(["A dog barked."]) == 1
    (stored_settings,) = writing.store.contents()
    assert stored_settings.settings["mode"] == "late"
