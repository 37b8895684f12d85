"""What has a model is pickled and copied by the model's name: no weights are written, and none are copied."""

import copy
import pickle

import pytest
import torch
from langchain_qrhead import QRHeadMemoryMiddleware
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import QRRetriever
from tests.helpers.tiny import save_tiny

HEADS = [(1, 0), (2, 1)]
DOCUMENTS = ["The keeper counts the ships.", "Soup is served at noon.", "The lighthouse is tall. " * 20]
COMPONENTS = {
    "reranker of LangChain": LangChainReranker,
    "reranker of LlamaIndex": LlamaIndexReranker,
    "memory": QRHeadMemory.from_defaults,
    "middleware": lambda **options: QRHeadMemoryMiddleware(max_tokens=50, **options),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def load(folder, **options):
    return QRRetriever.from_pretrained(folder, **{"heads": HEADS, "mode": "late", "device": "cpu", **options})


def scorer_of(component):
    return getattr(component, "_scorer", component).load_scorer()


@pytest.mark.parametrize(
    "options", [{}, {"mode": "listwise", "instruction": "Find it."}, {"piece_tokens": 20, "dtype": torch.float64}]
)
def test_a_retriever_is_pickled_by_name(folder, options):
    retriever = load(folder, **options)
    expected = retriever.score("who counts?", DOCUMENTS)
    restored = pickle.loads(pickle.dumps(retriever))
    assert restored.score("who counts?", DOCUMENTS) == pytest.approx(expected, abs=1e-6)
    assert (restored.heads, restored.mode, restored.options) == (retriever.heads, retriever.mode, retriever.options)
    assert restored.model is not retriever.model
    assert restored.model.dtype == retriever.model.dtype
    assert len(pickle.dumps(retriever)) < 2_000


def test_what_a_model_was_loaded_from_is_pickled_and_a_token_is_not(folder):
    retriever = load(folder, revision="v2", trust_remote_code=True, token="secret")
    wanted = {"revision": "v2", "trust_remote_code": True, "device": "cpu"}
    assert wanted.items() <= retriever.loading_options().items()
    assert b"secret" not in pickle.dumps(retriever)


def test_a_copy_of_a_retriever_is_itself(tiny):
    assert copy.deepcopy({"scorer": tiny})["scorer"] is tiny
    assert copy.copy(tiny) is tiny


def test_a_retriever_in_memory_only_is_not_pickled(tiny):
    with pytest.raises(ValueError, match=r"model of this QRRetriever .* in memory only.*; save it \(save_pretrained\)"):
        pickle.dumps(tiny)


def test_a_list_that_holds_its_model_says_how_it_is_kept(tiny):
    encoded = tiny.encode(DOCUMENTS)
    for action in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"neither pickled nor deeply copied.*EncodedPassages\.save"):
            action(encoded)
    ranking = encoded.rank("who counts?")
    assert pickle.loads(pickle.dumps(ranking)) == copy.deepcopy(ranking) == ranking


@pytest.mark.parametrize("make", COMPONENTS.values(), ids=COMPONENTS.keys())
def test_a_component_is_pickled_by_name_and_copied_with_its_model(make, folder):
    described, injected = make(model=folder, heads=HEADS, mode="late", device="cpu"), make(scorer=load(folder))
    expected = scorer_of(described).score("who counts?", DOCUMENTS)
    for component in (described, injected):
        written = pickle.dumps(component)
        assert len(written) < 5_000
        assert scorer_of(pickle.loads(written)).score("who counts?", DOCUMENTS) == pytest.approx(expected, abs=1e-6)
        assert scorer_of(copy.deepcopy(component)) is scorer_of(copy.copy(component)) is scorer_of(component)


@pytest.mark.parametrize("make", COMPONENTS.values(), ids=COMPONENTS.keys())
def test_a_component_whose_model_was_in_memory_is_not_rebuilt_as_another(make, tiny):
    component = make(scorer=tiny)
    with pytest.raises(ValueError, match="lived in memory only"):
        pickle.loads(pickle.dumps(component))
    assert scorer_of(copy.deepcopy(component)) is tiny
