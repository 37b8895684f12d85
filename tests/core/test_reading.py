"""The evidence of a list is that of the document which is ranked first."""

import pytest
import torch

from qrhead_rag.core.reading import Reading

OFFSETS = torch.zeros(4, 2, dtype=torch.int32)
LABELS = {1: "", 2: "", 3: ""}  # document 0 is blank and has no piece


def reading(by_head, strengths, document_of_piece=(1, 2, 3, 3)):
    documents = torch.tensor(document_of_piece)
    return Reading(
        "evidence", torch.tensor([by_head]), torch.arange(4), documents, OFFSETS, LABELS, torch.tensor([strengths])
    )


@pytest.mark.parametrize(
    ("by_head", "strengths", "expected"),
    [
        ([1.0, 3.0, 1.0, 1.0], [0.1, 0.2, 0.8, 0.9], 0.2),
        ([1.0, 1.0, 3.0, 1.0], [0.9, 0.8, 0.1, 0.3], 0.3),  # the strongest piece of a long document
        ([3.0, 3.0, 1.0, 1.0], [0.1, 0.9, 0.8, 0.8], 0.1),  # the first of equal ones
        ([0.0, 0.0, 0.0, 0.0], [0.4, 0.5, 0.6, 0.7], 0.4),  # a list that begins with a blank document
    ],
)
def test_evidence_is_that_of_the_first(by_head, strengths, expected):
    read = reading(by_head, strengths)
    scores, _ = read.scores(4)
    assert read.list_evidence(scores) == pytest.approx(expected)


def test_where_lists_are_laid_out_backwards_the_first_of_equal_ones_is_the_first_given():
    read = reading([1.0, 1.0, 3.0, 3.0], [0.1, 0.2, 0.3, 0.4], (3, 3, 2, 1))
    scores, _ = read.scores(4)
    assert read.list_evidence(scores) == pytest.approx(0.4)
