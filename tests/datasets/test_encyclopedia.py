"""The detection set that comes with the package: whole, and nothing but what passages say tells the right one."""

import json
from collections import Counter
from importlib import resources

import pytest
import torch

from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.encyclopedia import load_encyclopedia
from qrhead_rag.evaluate.metrics import ndcg_of_scores


def entries():
    text = resources.files("qrhead_rag").joinpath("data/encyclopedia.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_passages_are_many_different_and_of_like_length_within_a_subject():
    passages = entries()
    assert len(passages) >= 300
    assert len({entry["id"] for entry in passages}) == len({entry["text"] for entry in passages}) == len(passages)
    assert {entry["language"] for entry in passages} == {"en", "de", "fr", "es", "zh", "ar"}
    by_group = {}
    for entry in passages:
        by_group.setdefault(entry["group"], []).append(len(entry["text"]))
    assert all(len(lengths) >= 7 and max(lengths) <= 1.6 * min(lengths) for lengths in by_group.values())


def test_questions_stand_among_the_passages_of_their_subject():
    examples = load_encyclopedia()
    assert len(examples) >= 80
    assert len({example.query for example in examples}) == len(examples)
    for example in examples:
        group = example.id.rpartition("-")[0]
        ids = [document.id for document in example.documents]
        assert len(set(ids)) == 20
        assert sum(name.startswith(f"{group}-") for name in ids) >= 7
        assert all(ids[index].startswith(f"{group}-") for index in example.relevant)
    assert Counter(len(example.relevant) for example in examples)[1] > 0.7 * len(examples)
    assert {example.metadata["language"] for example in examples} == {"en", "de", "fr", "es", "zh", "ar"}


def test_the_lists_are_the_same_in_every_process_and_other_with_another_seed():
    assert load_encyclopedia() == load_encyclopedia()
    assert load_encyclopedia(seed=1) != load_encyclopedia()
    assert {len(example.documents) for example in load_encyclopedia(candidates=12)} == {12}


def quality(scores_of):
    examples = load_encyclopedia()
    return sum(float(ndcg_of_scores(torch.tensor([scores_of(e)]), e)) for e in examples) / len(examples)


@pytest.mark.parametrize(
    "scores_of",
    [
        lambda example: [-float(len(document.text)) for document in example.documents],
        lambda example: [float(len(document.text)) for document in example.documents],
        lambda example: [-float(index) for index in range(len(example.documents))],
    ],
    ids=["shortest", "longest", "first"],
)
def test_neither_length_nor_position_tells_the_right_passage(scores_of):
    assert quality(scores_of) < 0.45


def test_words_in_common_do_not_tell_it_either():
    assert quality(lambda example: BM25([d.content for d in example.documents]).scores(example.query)) < 0.75


def test_half_of_the_subjects_has_passages_and_questions_of_its_own():
    whole, half = load_encyclopedia(), load_encyclopedia(every=2)
    assert {example.id for example in half} < {example.id for example in whole}
    passages = [{document.id for example in examples for document in example.documents} for examples in (whole, half)]
    assert passages[1] < passages[0]
    assert len(passages[1]) < 0.6 * len(passages[0]), "what is not asked for is not encoded"
    assert {example.metadata["language"] for example in half} == {example.metadata["language"] for example in whole}
    for example in half:
        assert 6 <= len(example.documents) <= 20
        assert all(0 <= index < len(example.documents) for index in example.relevant)
