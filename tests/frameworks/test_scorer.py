"""A scorer described by options: loaded once, shared, sent by name, and honest about what it cannot load again."""

import copy
import gc
import pickle
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from langchain_core.stores import InMemoryByteStore

from qrhead_rag import PassageStore, QRRetriever
from qrhead_rag.frameworks.history import HistoryScorerOptions
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.ranking.loaded import LoadedRetrievers
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (2, 1)]
DOCUMENTS = ["The keeper counts the ships.", "Soup is served at noon.", "The lighthouse is tall."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def options(folder, **changes):
    return ScorerOptions(**{"model": folder, "heads": HEADS, "device": "cpu", **changes})


def test_options_load_what_they_describe(folder):
    scorer = options(folder, mode="late", layout="given", instruction="Find it.", dtype=torch.float64).load_scorer()
    assert scorer.model_name == str(folder)
    assert list(scorer.heads.heads) == HEADS
    assert (scorer.mode, scorer.layout, scorer.instruction) == ("late", "given", "Find it.")
    assert scorer.model.dtype == torch.float64
    assert scorer.model.device == torch.device("cpu")


def test_a_model_is_loaded_at_first_use_by_one_of_many_threads(folder, monkeypatch):
    loads = []
    from_pretrained = QRRetriever.from_pretrained

    def counting(*args, **kwargs):
        loads.append(threading.get_ident())
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(QRRetriever, "from_pretrained", counting)
    components = [options(folder, instruction="Only here.") for _ in range(8)]
    assert loads == []
    barrier, scorers = threading.Barrier(len(components)), []

    def ask(component):
        barrier.wait()
        scorers.append(component.load_scorer())

    threads = [threading.Thread(target=ask, args=(component,)) for component in components]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(set(map(id, scorers))) == 1


@pytest.mark.parametrize(
    "changes", [{"heads": [(0, 0)]}, {"mode": "independent"}, {"instruction": "x"}, {"dtype": "float64"}]
)
def test_other_options_are_another_scorer(folder, changes):
    component = options(folder)
    assert options(folder, **changes).load_scorer() is not component.load_scorer()
    assert options(folder).load_scorer() is component.load_scorer()


def test_further_options_are_passed_on_and_recorded(folder):
    component = options(folder, device=None, mode="late", options={"piece_tokens": 20, "local_files_only": True})
    scorer = component.load_scorer()
    assert scorer.options.piece_tokens == 20
    injected = ScorerOptions(scorer=scorer)
    assert injected.options == {"piece_tokens": 20}
    long = ["The keeper counts ships. " * 20, "Soup is served at noon. " * 20]
    rebuilt = ScorerOptions.model_validate_json(injected.model_dump_json()).load_scorer()
    assert rebuilt is not scorer, "what else it was loaded with is not known of an injected scorer"
    assert rebuilt.score("who counts?", long) == pytest.approx(scorer.score("who counts?", long), abs=1e-6)


@pytest.fixture
def loads(monkeypatch):
    """How often a model was loaded, from now on."""
    calls, from_pretrained = [], QRRetriever.from_pretrained
    monkeypatch.setattr(
        QRRetriever, "from_pretrained", lambda **options: calls.append(options) or from_pretrained(**options)
    )
    return calls


def test_a_component_made_for_each_request_loads_its_model_once(folder, loads):
    for _ in range(4):
        options(folder, instruction="At each request.").load_scorer().score("who counts?", DOCUMENTS)
    assert len(loads) == 1
    ScorerOptions.release_scorers()
    options(folder, instruction="At each request.").load_scorer()
    assert len(loads) == 2


def test_what_is_released_is_given_up_and_what_is_in_use_stays(folder):
    used, unused = options(folder), options(folder, instruction="Soon gone.")
    shared, gone = used.load_scorer(), weakref.ref(unused.load_scorer().model)
    del unused
    gc.collect()
    assert gone() is not None
    ScorerOptions.release_scorers()
    assert gone() is None
    assert options(folder).load_scorer() is shared


def test_the_last_models_are_kept_within_a_bound_in_bytes(folder):
    size = options(folder).load_scorer().model.get_memory_footprint()
    for keep_bytes, kept in {0: 0, size - 1: 0, size: 1, 2 * size: 2, 9 * size: 3}.items():
        loaded = LoadedRetrievers(keep_bytes)
        models = [
            weakref.ref(loaded.get({"model": str(folder), "heads": HEADS, "instruction": text, "device": "cpu"}).model)
            for text in ("a", "b", "c")
        ]
        gc.collect()
        assert [model() is not None for model in models] == [False] * (3 - kept) + [True] * kept


def test_what_is_read_counts_as_bytes_too(folder):
    size = options(folder).load_scorer().model.get_memory_footprint()
    loaded, wanted = LoadedRetrievers(size + 1000), {"model": str(folder), "heads": HEADS, "device": "cpu"}
    loaded.get(wanted).score("who counts?", DOCUMENTS)
    model = weakref.ref(loaded.get(wanted).model)
    gc.collect()
    assert model() is None


def test_what_nobody_asks_for_is_let_go_of(folder):
    loaded = LoadedRetrievers(keep_seconds=0.01)
    model = weakref.ref(loaded.get({"model": str(folder), "heads": HEADS, "device": "cpu"}).model)
    for _ in range(6000):
        if model() is None:
            break
        time.sleep(0.01)
    assert model() is None


def test_another_store_is_another_scorer(folder, tmp_path, monkeypatch):
    byte_stores = [InMemoryByteStore(), InMemoryByteStore()]
    scorers = [options(folder, mode="late", store=PassageStore(store)).load_scorer() for store in byte_stores]
    assert [scorer.store.byte_store for scorer in scorers] == byte_stores
    assert options(folder, mode="late", store=byte_stores[0]).load_scorer() is scorers[0]
    monkeypatch.chdir(tmp_path)
    first = options(folder, mode="late", store="chunks.db").load_scorer()
    assert options(folder, mode="late", store=tmp_path / "chunks.db").load_scorer() is first
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert options(folder, mode="late", store="chunks.db").load_scorer().store.name == str(Path("chunks.db").absolute())


def test_a_file_that_was_written_anew_is_read_anew(folder, tmp_path):
    heads = options(folder).load_scorer().heads
    file = tmp_path / "heads.json"
    heads.save(file)
    first = options(folder, heads=file).load_scorer()
    assert options(folder, heads=file).load_scorer() is first
    heads.model_copy(update={"heads": ((0, 0),)}).save(file)
    assert options(folder, heads=file).load_scorer().heads.heads == ((0, 0),)


def test_an_injected_scorer_is_used_and_described(folder):
    scorer = QRRetriever.from_pretrained(folder, heads=HEADS, mode="late", layout="reversed", instruction="Find it.")
    component = ScorerOptions(scorer=scorer)
    assert component.load_scorer() is scorer
    assert (component.model, component.heads, component.mode) == (str(folder), scorer.heads, "late")
    assert (component.layout, component.instruction) == ("reversed", "Find it.")


def test_what_was_injected_is_rebuilt_from_data_with_the_same_scores(folder):
    scorer = QRRetriever.from_pretrained(folder, heads=HEADS, instruction="Find it.")
    component = ScorerOptions(scorer=scorer)
    expected = scorer.score("who counts?", DOCUMENTS)
    for rebuilt in (
        ScorerOptions.model_validate_json(component.model_dump_json()),
        ScorerOptions(**component.model_dump()),
        pickle.loads(pickle.dumps(component)),
    ):
        assert rebuilt.scorer is None
        assert rebuilt.load_scorer() is not scorer
        assert rebuilt.load_scorer().score("who counts?", DOCUMENTS) == pytest.approx(expected, abs=1e-6)
        assert rebuilt.model_dump() == component.model_dump()


def test_a_rebuilt_component_shares_the_model_of_its_equal(folder):
    component = options(folder, device=None)
    component.load_scorer()
    injected = ScorerOptions(scorer=component.load_scorer())
    assert ScorerOptions(**injected.model_dump()).load_scorer() is component.load_scorer()


def test_a_scorer_that_lived_in_memory_only_says_so(tiny):
    component = ScorerOptions(scorer=tiny)
    assert component.load_scorer() is tiny
    data = component.model_dump()
    with pytest.raises(ValueError, match=r"LlamaForCausalLM that lived in memory only.*pass scorer="):
        ScorerOptions(**data)
    with pytest.raises(ValueError, match="lived in memory only"):
        pickle.loads(pickle.dumps(component))
    assert ScorerOptions(**data, scorer=tiny).load_scorer() is tiny


def test_the_model_is_neither_pickled_nor_deeply_copied(tiny):
    component = ScorerOptions(scorer=tiny)
    assert len(pickle.dumps(component)) < 5_000
    twin = copy.deepcopy({"a": component, "b": component})
    assert twin["a"] is twin["b"]
    assert twin["a"] is not component
    assert twin["a"].load_scorer() is tiny


@pytest.mark.parametrize(
    "contradiction",
    [{"mode": "late"}, {"model": "another/model"}, {"heads": [(0, 0)]}, {"instruction": "x"}, {"layout": "reversed"}],
)
def test_an_option_that_contradicts_the_scorer_is_refused(tiny, contradiction):
    (name,) = contradiction
    with pytest.raises(ValueError, match=rf"{name}=.*contradicts scorer=.*leave {name} out"):
        ScorerOptions(scorer=tiny, **contradiction)


def test_a_scorer_is_rebuilt_from_the_weights_that_it_was_loaded_from(folder):
    scorer = QRRetriever.from_pretrained(folder, heads=HEADS, revision="v2", dtype=torch.bfloat16, token="secret")
    component = ScorerOptions(scorer=scorer)
    assert component.options == {"revision": "v2"}
    assert "secret" not in component.model_dump_json()


def test_an_option_that_agrees_with_the_scorer_is_fine(tiny):
    heads = [(1, 0), (1, 3), (2, 1), (2, 2)]
    assert ScorerOptions(scorer=tiny, mode="listwise", heads=heads).heads == tiny.heads


def test_a_store_agrees_with_the_scorer_however_it_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scorer = QRRetriever.from_pretrained(folder, heads=HEADS, mode="late", store="chunks.db")
    for store in ("chunks.db", tmp_path / "chunks.db", scorer.store):
        assert ScorerOptions(scorer=scorer, store=store).store == str(tmp_path / "chunks.db")
    with pytest.raises(ValueError, match=r"store='.*other.db' contradicts scorer="):
        ScorerOptions(scorer=scorer, store="other.db")


def test_unknown_options_are_refused_by_name():
    with pytest.raises(ValueError, match="modle"):
        ScorerOptions(modle="x")
    with pytest.raises(ValueError, match="mode"):
        ScorerOptions(mode="both")


def test_a_history_is_read_late_unless_its_scorer_says_otherwise(tiny):
    assert HistoryScorerOptions().mode == "late"
    assert HistoryScorerOptions(scorer=tiny).mode == "listwise"


def test_a_name_given_to_a_model_in_memory_does_not_make_it_loadable():
    retriever = QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, model_name="my fine-tune")
    component = ScorerOptions(scorer=retriever)
    assert component.model == "in-memory:my fine-tune"
    with pytest.raises(ValueError, match=r"lived in memory only, .*; pass scorer="):
        pickle.loads(pickle.dumps(component))
