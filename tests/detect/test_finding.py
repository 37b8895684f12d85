"""Heads found without labels on a model that has some, and refused on one that has none or where a list gives itself away."""

import random

import pytest

from qrhead_rag import Passage, QRRetriever, find_heads
from qrhead_rag.core.heads import ModelShape, heads_of_layers
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.detect.finding import (
    NoHeadsError,
    best_detection,
    check_worth,
    controls,
    layers_to_search,
)
from qrhead_rag.detect.made import make_examples
from qrhead_rag.detect.report import Detection, DetectionOptions, Quality
from qrhead_rag.ranking.store import store_of
from tests.helpers.synonyms import KNOWING, synonym_corpus, synonym_model
from tests.helpers.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

SUBJECTS = 40
CORPUS = synonym_corpus(SUBJECTS)


@pytest.fixture(scope="module")
def knowing():
    return synonym_model(SUBJECTS)


@pytest.mark.parametrize("mode", ["late", "independent", "listwise"])
def test_the_heads_that_know_the_meanings_are_found(knowing, mode):
    model, tokenizer = knowing
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    heads = find_heads(model, tokenizer, CORPUS, mode=mode, candidates=8)
    assert set(heads.heads) == set(KNOWING)
    assert heads.mode == mode
    assert heads.num_layers == 3
    assert heads.num_examples == 40
    assert "A0x0 A0x1" in heads.note
    assert "all heads together" in heads.note
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())
    retriever = QRRetriever(model, tokenizer, heads=heads)
    assert retriever.mode == mode
    assert retriever.rank("A7x1 A7x3 A7x2", CORPUS[4:10])[0].index == 3


def test_number_depth_and_readout_can_be_named(knowing):
    heads = find_heads(*knowing, CORPUS, num_heads=3, max_layer=2, readout="published", name="mine")
    assert (len(heads.heads), heads.readout, heads.name) == (3, "published", "mine")
    assert find_heads(*knowing, CORPUS, num_heads=1, max_layer=0).heads == (KNOWING[0],)


def test_a_model_without_such_heads_is_refused_with_the_figures():
    with pytest.raises(NoHeadsError, match=r"held out 0\.\d+ ± 0\.\d+; all heads together 0\.\d+, order 0\.\d+"):
        find_heads(tiny_model(), tiny_tokenizer(), CORPUS)


def poisoned(tell, count=40, length=12):
    """Lists of random words in which only one thing tells the right passage."""
    draw = random.Random(0)

    def words(number):
        return " ".join(f"B{draw.randrange(SUBJECTS)}x{draw.randrange(8)}" for _ in range(number))

    examples = []
    for _ in range(count):
        texts, query = [words(length) for _ in range(10)], words(6)
        right = 0 if tell == "position" else draw.randrange(10)
        if tell == "length":
            texts[right] = words(length // 3)
        if tell == "words":
            texts[right] = f"{query} {words(length - 6)}"
        examples.append(LabelledExample(query=query, documents=[Passage(text=t) for t in texts], relevant=(right,)))
    return examples


@pytest.mark.parametrize(
    ("tell", "control", "mode"),
    [("length", "shortest", "late"), ("position", "order", "listwise"), ("words", "BM25", "late")],
)
def test_lists_that_give_themselves_away_yield_no_heads(knowing, tell, control, mode):
    examples = poisoned(tell)
    assert controls(examples)[control] > 0.95
    retriever = QRRetriever(*knowing, heads="all", mode=mode)
    options = DetectionOptions(criterion="ndcg")
    detection = best_detection(retriever, {"poisoned": examples}, ["published"], options)
    with pytest.raises(NoHeadsError, match="no heads of"):
        check_worth(detection, controls(examples))


def test_the_control_refuses_what_only_all_heads_would_let_pass(knowing):
    """A head that knows the words ranks better than all heads, and no better than BM25."""
    examples = poisoned("words")
    retriever = QRRetriever(*knowing, heads="all", mode="late")
    detection = best_detection(retriever, {"poisoned": examples}, ["evidence"], DetectionOptions(criterion="ndcg"))
    assert detection.p_value_all < 0.05
    check_worth(detection, {})
    with pytest.raises(NoHeadsError, match="BM25"):
        check_worth(detection, controls(examples))


@pytest.mark.parametrize(
    ("chosen", "together", "p_value", "controls", "is_worth"),
    [
        (0.8, 0.6, 0.01, {"order": 0.3, "BM25": 0.5}, True),
        (0.8, 0.6, 0.01, {"order": 0.3, "BM25": 0.85}, True),  # titles say what sentences say
        (0.92, 0.6, 0.01, {"order": 0.3, "BM25": 0.93}, False),
        (0.97, 0.6, 0.01, {"order": 0.3, "BM25": 0.93}, True),
        (0.8, 0.6, 0.01, {"order": 0.79, "BM25": 0.5}, False),  # within the error
        (0.8, 0.6, 0.06, {"order": 0.3}, False),
        (0.6, 0.8, 0.01, {"order": 0.3}, False),
    ],
)
def test_what_heads_have_to_be_worth(chosen, together, p_value, controls, is_worth):
    detection = Detection.model_construct(
        model="org/model",
        options=DetectionOptions(criterion="ndcg"),
        quality={"ndcg": Quality(mean=chosen, error=0.02), "all": Quality(mean=together, error=0.02)},
        p_value_all=p_value,
    )
    if is_worth:
        assert f"{chosen:.3f} ± 0.020" in check_worth(detection, controls)
    else:
        with pytest.raises(NoHeadsError, match=f"{chosen:.3f} ± 0.020"):
            check_worth(detection, controls)


def test_two_readouts_share_what_is_encoded(knowing):
    retriever = QRRetriever(*knowing, heads="all", mode="late")
    other = retriever.with_readout("published")
    documents = CORPUS[:6]
    retriever.score("A1x1 A1x2", documents)
    runs, prefill = [], retriever._context.reader.prefill
    object.__setattr__(
        retriever._context.reader, "prefill", lambda *args, **kwargs: runs.append(args) or prefill(*args)
    )
    scores = other.score("A1x1 A1x2", documents)
    assert not runs
    alone = QRRetriever(*knowing, heads="all", mode="late", readout="published")
    alone.with_readout("evidence").score("A1x1 A1x2", documents)  # the prompt up to the query runs with the same query
    store_of(alone).cache.clear()  # but the passages are encoded once more
    assert scores == alone.score("A1x1 A1x2", documents)
    assert (retriever.readout, other.readout) == ("evidence", "published")


def test_a_readout_is_preferred_unless_another_is_better_by_the_error(knowing):
    examples = {"made": make_examples(CORPUS, candidates=8)}
    retriever = QRRetriever(*knowing, heads=heads_of_layers(2, ModelShape("llama", 3, 4)), mode="late")
    options = DetectionOptions(criterion="ndcg", num_heads=2)
    for preferred, other in (("evidence", "published"), ("published", "evidence")):
        assert best_detection(retriever, examples, [preferred, other], options).readout == preferred


def test_two_thirds_of_the_layers_are_searched_unless_more_is_asked_for():
    shape = ModelShape("llama", 30, 9)
    assert layers_to_search(shape, None, 30) == 20
    assert layers_to_search(shape, None, 12) == 12
    assert layers_to_search(shape, 29, 30) == 30
    for layer in (-1, 30):
        with pytest.raises(ValueError, match=f"max_layer={layer}: expected 0 to 29"):
            layers_to_search(shape, layer, 30)
