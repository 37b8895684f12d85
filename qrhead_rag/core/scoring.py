"""Attention to passage scores, as pure functions of tensors: two readouts.

The readout `published`:

    (1)  a(t) = mean over query-span rows of softmax(q·k·scale)[row, t]
    (2)  c(t) = a(t | query) - a(t | null query)
    (3)  s(d) = sum of c(t) over t in d with c(t) > mean(c) - 2·std(c)          (mean, unbiased std over d)

Several heads: c is summed over them first, then masked and summed over tokens. Calibration is that of In-Context
Re-ranking (Chen et al., arXiv 2410.02642, eq. 3 and 4), the heads those of QRHead (Zhang et al., arXiv 2506.09944,
eq. 2).

The readout `evidence` asks what each token of the query finds in a document beyond what the document attracts anyhow,
and never counts against it what a token lacks. The instruction stands before the query, so its rows do not know the
query: they are the prior, and no null query has to run. With m(r, d) the attention of row r to all tokens of d, for
each head h:

    (4)  b_h(d) = mean over the instruction's rows r of m_h(r, d)
    (5)  e_h(d) = mean over the query's own tokens r of max(m_h(r, d) - b_h(d), 0)
    (6)  s(d)   = mean over h of e_h(d) / sum over d' of e_h(d')                  (each head has one vote)

Raw scores compare within one list only. How much a list has for the query is said by the strength of the document that
is ranked first:

    (7)  p_h(d) = mean over the query's own tokens r of max over t in d of max(a_h(r, t) - a_h(instruction, t), 0)
    (8)  z_h(d) = sqrt(p_h(d) * e_h(d) / (e_h(d) + b_h(d)))
    (9)  evidence of the list = mean over h of z_h(first document)
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from qrhead_rag.core.heads import Head
from qrhead_rag.core.prompt import Span

OUTSIDE = -1
"""Document number of a token that belongs to none."""

POOLED_PIECES = 3
"""Pieces of a long document whose scores are added up."""


def document_of_tokens(spans: Sequence[Span], num_tokens: int) -> Tensor:
    """The index of each token's document, OUTSIDE for a token of none. Shape: (tokens,)

    >>> document_of_tokens([Span(1, 3), Span(4, 5)], 6).tolist()
    [-1, 0, 0, -1, 1, -1]
    """
    document_of = torch.full((num_tokens,), OUTSIDE)
    for number, span in enumerate(spans):
        document_of[span.start : span.end] = number
    return document_of


def calibrate(attention: Tensor, null_attention: Tensor) -> Tensor:
    """Equation (2), c(t): attention from the query without what a token attracts whatever is asked.

    Args:
        attention: a(t | query). Shape: (..., tokens)
        null_attention: a(t | null query). Shape: (..., tokens)

    >>> calibrate(torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.25])).tolist()
    [0.25, 0.0]
    """
    return attention - null_attention


def masked(calibrated: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """The mask of equation (3): c(t) where it counts; 0 where it does not, and for tokens of no document.

    c(t) counts if it lies above the mean of its document minus two standard deviations. A document of one token has no
    standard deviation and is not masked.

    Args:
        calibrated: c(t). Shape: (..., tokens)
        document_of: index of each token's document, or OUTSIDE. Shape: (tokens,)
        num_documents: documents in the list.

    >>> c = torch.tensor([0.0, 0.5, 0.25, 0.25, 1.0])
    >>> masked(c, torch.tensor([-1, 0, 0, 0, 1]), 2).tolist()
    [0.0, 0.5, 0.25, 0.25, 1.0]
    """
    sizes = _sum_by_document(torch.ones_like(document_of, dtype=calibrated.dtype), document_of, num_documents)
    bin_of = _bins(document_of, num_documents)
    mean = _sum_by_document(calibrated, document_of, num_documents) / sizes.clamp(min=1)  # (..., documents + 1)
    squares = _sum_by_document((calibrated - mean[..., bin_of]) ** 2, document_of, num_documents)
    deviation = (squares / (sizes - 1).clamp(min=1)).sqrt()  # (..., documents + 1)
    threshold = torch.where(sizes > 1, mean - 2 * deviation, -torch.inf)
    counted = (calibrated > threshold[..., bin_of]) & (document_of != OUTSIDE)
    return calibrated.where(counted, 0.0)


def document_scores(contributions: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """Equation (3), s(d): the contributions of each document's tokens, summed.

    Args:
        contributions: c(t) after the mask. Shape: (..., tokens)
        document_of: index of each token's document, or OUTSIDE. Shape: (tokens,)
        num_documents: documents in the list.

    Returns:
        Shape: (..., documents)

    >>> document_scores(torch.tensor([9.0, 1.0, 2.0, 4.0]), torch.tensor([-1, 0, 0, 1]), 2).tolist()
    [3.0, 4.0]
    """
    return _sum_by_document(contributions, document_of, num_documents)[..., :num_documents]


def pool_pieces(scores: Tensor, document_of: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """Document scores from piece scores: the best POOLED_PIECES of each document, summed.

    Args:
        scores: s of each piece. Shape: (..., pieces)
        document_of: index of each piece's document. Shape: (pieces,)
        num_documents: documents in the list; a document without pieces gets 0.

    Returns:
        Scores, shape: (..., documents), and which pieces were summed, shape: (..., pieces)

    >>> scores, counted = pool_pieces(torch.tensor([1.0, 4.0, 2.0, 3.0, 9.0]), torch.tensor([0, 0, 0, 0, 1]), 2)
    >>> scores.tolist(), counted.tolist()
    ([9.0, 9.0], [False, True, True, True, True])
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, document_of[order].argsort(dim=-1, stable=True))  # by document, best piece first
    sizes = torch.bincount(document_of, minlength=num_documents)
    first = sizes.cumsum(0) - sizes  # (documents,)
    standing = torch.arange(len(document_of)) - first[document_of[order]]  # (..., pieces)
    counted = torch.empty_like(order, dtype=torch.bool).scatter(-1, order, standing < POOLED_PIECES)
    return _sum_by_document(scores.where(counted, 0.0), document_of, num_documents)[..., :num_documents], counted


def evidence(rows: Tensor, prior: Tensor, document_of: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """Equation (5), shared among the tokens of each document: e(t), which sums over a document to e(d); and (7).

    What a row finds in a document beyond the prior is shared among the document's tokens in proportion to what the row
    finds in each of them beyond the prior.

    Args:
        rows: attention of each of the query's own tokens. Shape: (heads, rows, tokens)
        prior: attention of the instruction, the mean of its rows. Shape: (heads, tokens)
        document_of: index of each token's document, or OUTSIDE; the tokens of a document stand together.
            Shape: (tokens,)
        num_documents: documents in the list.

    Returns:
        e(t), shape: (heads, tokens), and p(d), what a row finds beyond the prior in the one token of a document where
        that is most, mean of the rows, shape: (heads, documents)

    >>> rows, prior = torch.tensor([[[0.5, 0.25, 0.0], [0.0, 0.0, 0.5]]]), torch.tensor([[0.25, 0.25, 0.25]])
    >>> contributions, peaks = evidence(rows, prior, torch.tensor([0, 0, 1]), 2)
    >>> contributions.tolist()  # row 0 finds .25 in document 0, row 1 .25 in 1
    [[0.125, 0.0, 0.125]]
    >>> peaks.tolist()
    [[0.125, 0.125]]
    """
    share_out = _evidence_by_run if rows.device.type == "cpu" else _evidence_by_head
    return share_out(rows, prior, document_of, num_documents)


def _evidence_by_run(rows: Tensor, prior: Tensor, document_of: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """`evidence` by the runs of tokens that documents are, which a processor reduces faster than by index."""
    documents, lengths = document_of.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    inside = documents != OUTSIDE
    beyond = rows - prior[:, None]  # (heads, rows, tokens)
    runs = beyond.split_with_sizes(lengths.tolist(), dim=-1)
    gains = torch.stack([run.sum(dim=-1) for run in runs], dim=-1).clamp_(min=0)  # (heads, rows, runs)
    gains[..., ~inside] = 0.0
    beyond.clamp_(min=0)  # and the runs, which are views of it
    totals = torch.stack([run.sum(dim=-1) for run in runs], dim=-1)  # at least the gains
    peaks = rows.new_zeros(len(rows), num_documents)
    peaks[:, documents[inside]] = torch.stack([run.amax(dim=-1) for run in runs], dim=-1)[..., inside].mean(dim=1)
    shares = gains / totals.where(totals > 0, 1.0)
    for run, share in zip(runs, shares.unsqueeze(-1).unbind(dim=-2), strict=True):
        run.mul_(share)  # (heads, rows, tokens of the run) by (heads, rows, 1)
    return beyond.mean(dim=1), peaks


def _evidence_by_head(rows: Tensor, prior: Tensor, document_of: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """`evidence` a head at a time, in steps that are few and large, as an accelerator likes them."""
    bin_of = _bins(document_of, num_documents)
    by_head, peaks = [], []
    for head_rows, head_prior in zip(rows, prior, strict=True):
        beyond = head_rows - head_prior  # (rows, tokens)
        gains = _sum_by_document(beyond, document_of, num_documents).clamp(min=0)  # (rows, documents + 1)
        gains[:, num_documents:] = 0.0
        beyond = beyond.clamp(min=0)
        total = _sum_by_document(beyond, document_of, num_documents)  # at least the gain
        share = gains / total.where(total > 0, 1.0)  # (rows, documents + 1)
        by_head.append((share[:, bin_of] * beyond).mean(dim=0))
        most = beyond.new_zeros(len(beyond), num_documents + 1)
        most.scatter_reduce_(-1, bin_of.expand_as(beyond), beyond, "amax")
        peaks.append(most[:, :num_documents].mean(dim=0))
    return torch.stack(by_head), torch.stack(peaks)


def votes(scores: Tensor, contributions: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (6) before its mean: each head's share of evidence. A head that finds nothing has no vote.

    Args:
        scores: e(d) of each head. Shape: (heads, documents)
        contributions: e(t) of each head. Shape: (heads, tokens)

    Returns:
        The same as shares of the head's evidence in the list.

    >>> votes(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]]))[0].tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    totals = scores.sum(dim=-1, keepdim=True)  # (heads, 1)
    totals = totals.where(totals > 0, 1.0)
    return scores / totals, contributions / totals


def strengths(peaks: Tensor, prior: Tensor, contributions: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """Equation (8), z_h(d): how strong the evidence of each document is, whatever else is in the list.

    Args:
        peaks: p(d), as `evidence` gives it. Shape: (heads, documents)
        prior: attention of the instruction, the mean of its rows. Shape: (heads, tokens)
        contributions: e(t), as `evidence` gives it. Shape: (heads, tokens)
        document_of: index of each token's document, or OUTSIDE. Shape: (tokens,)
        num_documents: documents in the list.

    Returns:
        From 0 to 1. Shape: (heads, documents)

    >>> rows, prior, document_of = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[0.25, 0.25]]), torch.tensor([0, 1])
    >>> contributions, peaks = evidence(rows, prior, document_of, 2)
    >>> strengths(peaks, prior, contributions, document_of, 2)[0, 1].item()
    0.0
    """
    gains, priors = (document_scores(each, document_of, num_documents) for each in (contributions, prior))
    totals = gains + priors
    return (peaks * gains / totals.where(totals > 0, 1.0)).sqrt()


class NotFiniteError(FloatingPointError):
    """Attention that is not finite.

    Attributes:
        layer: of the head.
        head: within its layer.
        document: index of the first document whose keys are not finite; None if all are finite and the query is not.

    >>> str(NotFiniteError(layer=7, head=2, document=9)).partition(";")[0]
    'attention of layer 7, head 2 to document 9 is not finite'
    """

    def __init__(self, layer: int, head: int, document: int | None) -> None:
        super().__init__(layer, head, document)
        self.layer, self.head, self.document = layer, head, document

    def __str__(self) -> str:
        where = "every document" if self.document is None else f"document {self.document}"
        return (
            f"attention of layer {self.layer}, head {self.head} to {where} is not finite; expected numbers. Half "
            "precision overflows on some models: load the model with dtype='float32' or 'bfloat16', and under 'late' "
            "keep its keys likewise (key_dtype=)"
        )


def check_finite(
    attention: Tensor, heads: Sequence[Head], document_of: Tensor, keys: Callable[[], Iterable[Tensor]]
) -> None:
    """Refuse attention that is not finite.

    Args:
        attention: a(t) of each head. Shape: (heads, parts, tokens)
        heads: (layer, head) of each row of `attention`.
        document_of: index in the caller's list of each token's document, or OUTSIDE. Shape: (tokens,)
        keys: gives those of the tokens, layer after layer or of all layers side by side, and is called only if
            something is not finite: a key that is not spoils the attention to every token.
            Shape: each (key heads, tokens, numbers)

    Raises:
        NotFiniteError: names layer, head and the first document whose keys are not finite.
    """
    if bool(attention.sum().isfinite()):  # weights are at most 1, so that a sum of finite ones is finite
        return
    row = int(torch.nonzero(~torch.isfinite(attention))[0, 0])
    layer, head = heads[row]
    for of_layer in keys():  # the first layer, since a later one may have spread it to other tokens
        broken = ~torch.isfinite(of_layer).all(dim=0).all(dim=-1).cpu()  # (tokens,)
        documents = document_of[broken & (document_of != OUTSIDE)]
        if len(documents):
            raise NotFiniteError(layer, head, int(documents[0]))
    raise NotFiniteError(layer, head, None)


def _bins(document_of: Tensor, num_documents: int) -> Tensor:
    return document_of.where(document_of != OUTSIDE, num_documents)


def _sum_by_document(values: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """Sums by document; the last column sums the tokens of none. Shape: (..., documents + 1)"""
    sums = values.new_zeros(*values.shape[:-1], num_documents + 1)
    return sums.index_add(-1, _bins(document_of, num_documents), values)
