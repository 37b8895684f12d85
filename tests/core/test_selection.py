"""What is kept of a ranking: counts, shares, token budgets, and their intersection."""

import random

import numpy
import pytest
from pydantic import ValidationError

from qrhead_rag.core.selection import Selection, rank_order, select, shares

SCORES = [0.2, -0.5, 0.6, 0.0, 0.2]


def test_equal_scores_keep_the_callers_order():
    assert rank_order(SCORES) == [2, 0, 4, 3, 1]
    assert rank_order([1.0] * 50) == list(range(50))


def test_shares_are_of_the_positive_mass():
    assert shares(SCORES) == pytest.approx([0.2, 0.0, 0.6, 0.0, 0.2])
    assert shares([-1.0, 0.0]) == [0.0, 0.0]
    assert shares([]) == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [2, 0, 4, 3, 1]),
        ({"order": "original"}, [0, 1, 2, 3, 4]),
        ({"top_n": 2}, [2, 0]),
        ({"top_n": 99}, [2, 0, 4, 3, 1]),
        ({"top_n": 3, "order": "original"}, [0, 2, 4]),
        ({"min_share": 0.2}, [2, 0, 4]),
        ({"min_share": 0.0}, [2, 0, 4, 3, 1]),
        ({"min_share": 1.0}, [2]),  # the best is kept whatever is asked
        ({"min_share": 0.2, "top_n": 2}, [2, 0]),
        ({"max_tokens": 14}, [2, 4, 3]),  # document 0 does not fit and smaller ones after it do
        ({"max_tokens": 1}, [2]),  # the best is kept over the budget
        ({"max_tokens": 14, "top_n": 2}, [2]),
        ({"max_tokens": 14, "min_share": 0.1}, [2, 4]),
        ({"max_tokens": 14, "order": "original"}, [2, 3, 4]),
    ],
)
def test_each_option_and_their_intersections(options, kept):
    assert select(SCORES, Selection(**options), token_counts=[9, 1, 10, 2, 2]) == kept


def test_min_share_keeps_the_best_of_a_list_without_positive_scores():
    assert select([-3.0, -1.0, -2.0], Selection(min_share=0.5)) == [1]


def test_a_given_ranking_is_followed():
    assert select([0.1, 0.9, 0.5], Selection(top_n=2), ranking=[2, 0, 1]) == [2, 0]
    assert select([0.1, 0.9, 0.5], Selection(max_tokens=1), token_counts=[1, 1, 1], ranking=[2, 0, 1]) == [2]


def test_nothing_of_nothing():
    for selection in (Selection(), Selection(top_n=1), Selection(min_share=0.5), Selection(max_tokens=4)):
        assert select([], selection, token_counts=[]) == []


def test_a_budget_needs_counts():
    with pytest.raises(ValueError, match="max_tokens=4 needs token_counts, found None"):
        select([1.0], Selection(max_tokens=4))


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_and_nothing_that_fits_is_left_out(seed):
    rng = random.Random(seed)
    scores = [rng.choice([rng.gauss(0, 1), 0.5]) for _ in range(12)]
    counts = [rng.randint(0, 30) for _ in scores]
    budget = rng.randint(1, 120)
    kept = select(scores, Selection(max_tokens=budget), counts)
    ranking = rank_order(scores)
    assert kept[0] == ranking[0]
    assert kept == [index for index in ranking if index in kept]
    assert sum(counts[index] for index in kept) <= max(budget, counts[ranking[0]])
    for index in set(ranking) - set(kept):
        before = [other for other in kept if ranking.index(other) < ranking.index(index)]
        assert sum(counts[other] for other in before) + counts[index] > budget


@pytest.mark.parametrize("name", ["top_n", "max_tokens"])
@pytest.mark.parametrize("count", [0, -1, numpy.int64(0)])
def test_a_count_that_keeps_nothing(name, count):
    with pytest.raises(ValidationError, match=rf"{name}={count} keeps nothing; expected 1 or more, or None"):
        Selection(**{name: count})


@pytest.mark.parametrize("name", ["top_n", "max_tokens"])
@pytest.mark.parametrize("count", [1.5, 2.0, "3", True, False, [3], numpy.float64(3)])
def test_a_count_that_is_no_whole_number(name, count):
    with pytest.raises(ValidationError, match=rf"{name}=.* is not a whole number; expected 1 or more, or None"):
        Selection(**{name: count})


@pytest.mark.parametrize("count", [numpy.int64(3), numpy.uint8(3), 3])
def test_whole_numbers_of_every_kind(count):
    assert type(Selection(top_n=count, max_tokens=count).top_n) is int


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, [0.5]])
def test_what_is_no_share(share):
    with pytest.raises(ValidationError, match=r"min_share=.* is not a share; expected a number from 0 to 1, or None"):
        Selection(min_share=share)


@pytest.mark.parametrize("share", [0, 1, 0.5, numpy.float32(0.5)])
def test_shares_of_every_kind(share):
    assert type(Selection(min_share=share).min_share) is float


def test_unknown_options_and_orders():
    with pytest.raises(ValidationError, match="order"):
        Selection(order="best")
    with pytest.raises(ValidationError, match="topn"):
        Selection(topn=3)
