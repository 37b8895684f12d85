"""Calibration, mask and aggregation equal the published formula written out document by document."""

import pickle

import pytest
import torch

from qrhead_rag.core.prompt import Span
from qrhead_rag.core.scoring import (
    OUTSIDE,
    POOLED_PIECES,
    _evidence_by_head,
    _evidence_by_run,
    calibrate,
    check_finite,
    document_of_tokens,
    document_scores,
    masked,
    pool_pieces,
    strengths,
)


def published_score(calibrated):
    """s(d) of one document: what lies above mean - 2 std, summed."""
    if len(calibrated) == 1:
        return calibrated.sum()
    return calibrated[calibrated > calibrated.mean() - 2 * calibrated.std()].sum()


def random_list(seed, sizes=(5, 1, 40, 2, 17, 3)):
    generator = torch.Generator().manual_seed(seed)
    spans, start = [], 3
    for size in sizes:
        spans.append(Span(start, start + size))
        start += size + 1
    attention = torch.rand(2, 4, start + 5, generator=generator) ** 4  # (query and null, heads, tokens)
    attention[0, :, spans[2].start] = -3.0  # far below the mean, so that the mask has something to drop
    return spans, attention


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_formula_written_out(seed):
    spans, (attention, null) = random_list(seed)
    document_of = document_of_tokens(spans, attention.shape[-1])
    calibrated = calibrate(attention, null)
    wanted = torch.stack(
        [torch.stack([published_score(head[span.start : span.end]) for span in spans]) for head in attention - null]
    )
    scores = document_scores(masked(calibrated, document_of, len(spans)), document_of, len(spans))
    torch.testing.assert_close(scores, wanted)
    summed = (attention - null).sum(dim=0)
    together = document_scores(masked(summed[None], document_of, len(spans)), document_of, len(spans))[0]
    torch.testing.assert_close(together, torch.stack([published_score(summed[s.start : s.end]) for s in spans]))


def test_the_mask_drops_a_token_far_below_the_mean():
    calibrated = torch.tensor([-9.0] + [1.0] * 9)
    assert masked(calibrated, torch.zeros(10, dtype=torch.long), 1).tolist() == [0.0] + [1.0] * 9


def test_one_token_has_no_mask_and_equal_tokens_are_kept_or_dropped_as_published():
    assert masked(torch.tensor([-5.0]), torch.tensor([0]), 1).tolist() == [-5.0]
    # c > mean - 2·0 is false for tokens that are all alike: the published mask drops them.
    assert masked(torch.tensor([0.5, 0.5]), torch.tensor([0, 0]), 1).tolist() == [0.0, 0.0]


def test_tokens_outside_documents_count_for_nothing():
    document_of = document_of_tokens([Span(1, 2)], 4)
    assert document_of.tolist() == [OUTSIDE, 0, OUTSIDE, OUTSIDE]
    assert masked(torch.tensor([7.0, 1.0, 7.0, 7.0]), document_of, 1).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_inputs_are_left_alone():
    calibrated, document_of = torch.tensor([3.0, -4.0, 1.0]), torch.tensor([0, 0, OUTSIDE])
    masked(calibrated, document_of, 1)
    document_scores(calibrated, document_of, 1)
    assert calibrated.tolist() == [3.0, -4.0, 1.0]
    assert document_of.tolist() == [0, 0, OUTSIDE]


@pytest.mark.parametrize("seed", range(5))
def test_pooling_adds_up_the_best_pieces_of_each_document(seed):
    generator = torch.Generator().manual_seed(seed)
    document_of = torch.randint(0, 6, (25,), generator=generator)
    scores = torch.randn(3, 25, generator=generator)
    pooled, counted = pool_pieces(scores, document_of, 7)
    for row in range(3):
        for document in range(7):
            of_document = scores[row, document_of == document]
            best = of_document.sort(descending=True).values[:POOLED_PIECES]
            torch.testing.assert_close(pooled[row, document], best.sum())
            assert counted[row, document_of == document].sum() == min(POOLED_PIECES, len(of_document))
    torch.testing.assert_close(scores.where(counted, 0.0).sum(dim=1), pooled.sum(dim=1))


@pytest.mark.parametrize("seed", range(5))
def test_evidence_by_run_equals_evidence_by_head(seed):
    spans, attention = random_list(seed)
    rows, prior = attention.clamp(min=0).transpose(0, 1)[:, :1], attention[1]
    rows = torch.cat([rows, rows.roll(7, dims=-1), 0.5 * prior[:, None]], dim=1)  # the last row finds nothing
    of_list = rows, prior, document_of_tokens(spans, attention.shape[-1]), len(spans)
    expected = _evidence_by_head(*of_list)
    torch.testing.assert_close(_evidence_by_run(*of_list), expected)
    contributions, peaks = expected
    assert (contributions > 0).any(dim=0).sum() > 20
    assert not contributions[:, of_list[2] == OUTSIDE].any()
    assert bool((peaks > 0).any())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value):
    attention, document_of = torch.zeros(2, 3, 6), torch.tensor([OUTSIDE, 5, 5, 9, 9, OUTSIDE])
    keys = [torch.zeros(2, 6, 8), torch.zeros(1, 6, 8)]  # of layers 4 and 7
    heads = [(4, 1), (7, 2)]
    check_finite(attention, heads, document_of, lambda: keys)
    attention[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"layer 7, head 2 to every document is not finite"):
        check_finite(attention, heads, document_of, lambda: keys)
    keys[1][0, 0, 3] = value  # of the text around
    with pytest.raises(FloatingPointError, match="every document"):
        check_finite(attention, heads, document_of, lambda: keys)
    keys[1][0, 3:, 3] = value
    with pytest.raises(
        FloatingPointError, match=r"layer 7, head 2 to document 9 is not finite.*dtype='float32'"
    ) as caught:
        check_finite(attention, heads, document_of, lambda: keys)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_strengths_equal_the_formula_written_out(seed):
    generator = torch.Generator().manual_seed(seed)
    spans = [Span(2, 5), Span(5, 6), Span(8, 14)]
    attention = (torch.rand(3, 7, 16, generator=generator) * 4).softmax(dim=-1)  # (heads, rows, tokens)
    document_of = document_of_tokens(spans, 16)
    prior, rows = attention[:, :3].mean(dim=1), attention[:, 3:]
    contributions, peaks = _evidence_by_run(rows, prior, document_of, 3)
    wanted = torch.zeros(3, 3)
    for head in range(3):
        for number, (start, end) in enumerate(spans):
            beyond = rows[head, :, start:end] - prior[head, start:end]  # (rows, tokens of the document)
            peak = beyond.max(dim=1).values.clamp(min=0).mean()
            gain = beyond.sum(dim=1).clamp(min=0).mean()
            wanted[head, number] = (peak * gain / (gain + prior[head, start:end].sum())).sqrt()
    result = strengths(peaks, prior, contributions, document_of, 3)
    torch.testing.assert_close(result, wanted)
    assert bool(((result >= 0) & (result <= 1)).all())


def test_what_attracts_no_more_than_the_instruction_has_no_strength():
    rows, prior, document_of = torch.full((1, 2, 4), 0.25), torch.full((1, 4), 0.25), torch.tensor([0, 0, 1, 1])
    contributions, peaks = _evidence_by_run(rows, prior, document_of, 2)
    assert strengths(peaks, prior, contributions, document_of, 2).tolist() == [[0.0, 0.0]]
    assert strengths(peaks, prior * 0, contributions, document_of, 2).tolist() == [[0.0, 0.0]]
