"""Floors of evidence: what they do to lists with and without a relevant passage, and which one is recommended."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from qrhead_rag import LabelledExample, Passage, QRRetriever
from qrhead_rag.evaluate.abstain import (
    EvidencePair,
    apply_floor,
    calibrate,
    choose_floor,
    floor_curve,
    measure_evidence,
    separation,
)
from tests.helpers.tiny import tiny_model, tiny_tokenizer

EVIDENCE = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]))
PAIRS = st.lists(st.builds(EvidencePair, EVIDENCE, EVIDENCE), min_size=1, max_size=12)


def noisy(number=60, difference=0.2, seed=0):
    rng = random.Random(seed)
    return [EvidencePair(min(1.0, rng.random() * 0.5 + difference), rng.random() * 0.5) for _ in range(number)]


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_that_of_the_rank_test(seed):
    pairs = noisy(15, seed=seed)
    pairs = [*pairs, EvidencePair(None, 0.3), EvidencePair(pairs[0].without_relevant, None)]  # one tie
    with_relevant, without = ([value for value in values if value is not None] for values in zip(*pairs, strict=True))
    expected = mannwhitneyu(with_relevant, without).statistic / len(with_relevant) / len(without)
    area = separation(pairs)
    assert area.mean == pytest.approx(expected)
    assert 0 <= area.low <= area.mean <= area.high <= 1
    assert separation(pairs) == area


def test_the_area_needs_lists_of_both_kinds():
    with pytest.raises(ValueError, match="evidence of one kind of list only"):
        separation([EvidencePair(0.5, None)])


@given(PAIRS)
def test_a_higher_floor_keeps_less_and_passes_on_less(pairs):
    curve = floor_curve(pairs)
    assert curve[0].floor == 0.0
    assert curve[0].kept == float(any(pair.with_relevant is not None for pair in pairs))
    for lower, higher in pairwise(curve):
        assert lower.floor < higher.floor
        assert lower.kept >= higher.kept
        assert lower.passed_on >= higher.passed_on
        assert (lower.kept, lower.passed_on) != (higher.kept, higher.passed_on)


def test_a_floor_does_what_is_written_out():
    pairs = [EvidencePair(0.5, 0.1), EvidencePair(0.2, 0.3), EvidencePair(None, 0.2)]
    assert apply_floor(pairs, 0.2)[1:] == (1.0, 2 / 3)
    assert apply_floor(pairs, 0.25)[1:] == (0.5, 1 / 3)


@given(PAIRS, st.sampled_from([0.0, 0.1, 0.5]))
def test_the_chosen_floor_keeps_most_of_those_allowed(pairs, max_wrong):
    chosen = choose_floor(pairs, max_wrong)
    allowed = [point for point in floor_curve(pairs) if point.passed_on <= max_wrong]
    assert not allowed or chosen.kept == max(point.kept for point in allowed)
    best = choose_floor(pairs)
    assert all(best.kept - best.passed_on >= point.kept - point.passed_on for point in floor_curve(pairs))


def test_a_floor_is_recommended_with_errors_of_lists_that_did_not_choose_it():
    pairs = noisy()
    calibration = calibrate(pairs)
    assert calibration.reason is None
    assert 0.2 < calibration.floor < 0.5
    own = apply_floor(pairs, calibration.floor)
    assert calibration.kept - calibration.passed_on <= own.kept - own.passed_on
    strict = calibrate(pairs, max_wrong=0.05)
    assert strict.floor > calibration.floor
    assert strict.passed_on < 0.15


def test_no_floor_is_recommended_where_lists_are_not_told_apart():
    few = calibrate(noisy(10))
    assert few.floor is None
    assert few.reason == "10 lists with a relevant passage and 10 without; expected at least 20 of each"
    alike = calibrate(noisy(difference=0.0))
    assert alike.floor is None
    assert "not told apart" in alike.reason
    assert alike.auc.mean < 0.7
    assert calibrate([]).num_with == 0
    assert calibrate([EvidencePair(0.5, None)] * 30).auc is None


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_the_share_of_wrong_lists_is_a_share(share):
    with pytest.raises(ValueError, match=r"max_wrong=.* is no share of lists"):
        calibrate(noisy(), share)


def retriever(readout="evidence"):
    heads = [(1, 0), (2, 1)]
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=heads, mode="late", readout=readout)


def example(relevant):
    texts = ("Bread is baked at dawn.", "The keeper counts the ships.", "The lighthouse is tall.")
    return LabelledExample(
        query="Who counts the ships?", documents=tuple(Passage(text=text) for text in texts), relevant=relevant
    )


def test_lists_are_measured_with_and_without_their_relevant_passages():
    asked, done = retriever(), []
    examples = [example((1,)), example(()), example((0, 1, 2))]
    pairs = measure_evidence(asked, examples, on_progress=lambda number, total: done.append((number, total)))
    texts = [passage.text for passage in examples[0].documents]
    whole = asked.rank(examples[0].query, texts).evidence
    rest = asked.rank(examples[0].query, [texts[0], texts[2]]).evidence
    assert torch.allclose(torch.tensor(pairs[0]), torch.tensor([whole, rest]), rtol=1e-4)
    assert pairs[1] == (None, pytest.approx(whole, rel=1e-4))  # nothing in the list answers
    assert pairs[2] == (pytest.approx(whole, rel=1e-4), None)  # nothing is left
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_readout_without_evidence_is_refused():
    with pytest.raises(ValueError, match="the readout 'published' gives no evidence of a list"):
        measure_evidence(retriever("published"), [example((1,))])
    with pytest.raises(ValueError, match="no labelled examples"):
        measure_evidence(retriever(), [])


def test_few_lists_of_one_kind_each_have_an_interval_of_numbers(recwarn):
    area = separation([EvidencePair(0.3, None), EvidencePair(0.2, None), EvidencePair(None, 0.25)])
    assert area == (0.5, 0.0, 1.0)
    assert not recwarn.list
