"""Attention to passage scores: calibration, mask and aggregation, as pure functions of tensors.

    a(t) = mean over query-span rows of softmax(q·k·scale)[row, t]
    c(t) = a(t | query) - a(t | null query)
    s(d) = sum of c(t) over t in d with c(t) > mean(c) - 2·std(c)          (mean, unbiased std over d)

Several heads: c is summed over them first, then masked and summed over tokens. Calibration is that of In-Context
Re-ranking (Chen et al., arXiv 2410.02642, eq. 3 and 4), the heads those of QRHead (Zhang et al., arXiv 2506.09944,
eq. 2). Raw scores compare within one list only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qrhead_rag.core.heads import Head
from qrhead_rag.core.prompt import Span

OUTSIDE = -1
"""Document number of a token that belongs to none."""

POOLED_PIECES = 3
"""Pieces of a long document whose scores are added up."""


def document_of_tokens(spans: Sequence[Span], num_tokens: int) -> Tensor:
    """Which document each token belongs to, OUTSIDE for none. # (tokens,)

    >>> document_of_tokens([Span(1, 3), Span(4, 5)], 6).tolist()
    [-1, 0, 0, -1, 1, -1]
    """
    document_of = torch.full((num_tokens,), OUTSIDE)
    for number, span in enumerate(spans):
        document_of[span.start : span.end] = number
    return document_of


def calibrate(attention: Tensor, null_attention: Tensor) -> Tensor:
    """c(t): what the query adds to what each token attracts whatever is asked.

    Args:
        attention: a(t | query). # (..., tokens)
        null_attention: a(t | null query), of the same shape.
    """
    return attention - null_attention


def masked(calibrated: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """c(t) where it counts, 0 where the mask drops it or where a token belongs to no document.

    A token is dropped when it lies two standard deviations or more below the mean of its document. A document of one
    token has no standard deviation and is not masked.

    Args:
        calibrated: c(t). # (..., tokens)
        document_of: document number of each token. # (tokens,)
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
    """s(d): the contributions of each document's tokens, summed. # (..., tokens) -> (..., documents)

    >>> document_scores(torch.tensor([9.0, 1.0, 2.0, 4.0]), torch.tensor([-1, 0, 0, 1]), 2).tolist()
    [3.0, 4.0]
    """
    return _sum_by_document(contributions, document_of, num_documents)[..., :num_documents]


def pool_pieces(scores: Tensor, document_of: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """Document scores from the scores of their pieces: the best POOLED_PIECES of each document added up.

    Args:
        scores: s of each piece. # (..., pieces)
        document_of: document of each piece. # (pieces,)
        num_documents: documents in the list; one without pieces gets 0.

    Returns:
        Scores # (..., documents) and which pieces were added up # (..., pieces)

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


class NotFiniteError(FloatingPointError):
    """Attention that is not a number.

    Attributes:
        layer: of the head.
        head: within its layer.
        document: place of the first document whose keys are not finite; None where all are, so that it is the query.
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


def check_finite(attention: Tensor, heads: Sequence[Head], document_of: Tensor, keys: Mapping[int, Tensor]) -> None:
    """Refuse attention that is not finite.

    Args:
        attention: of each head. # (heads, parts, tokens)
        heads: (layer, head) of each row.
        document_of: place in the caller's list of each token's document, or OUTSIDE. # (tokens,)
        keys: what was read of the tokens, by layer: one that is not finite spoils the attention to all of them.
            # each (key heads, tokens, head size)

    Raises:
        NotFiniteError: names layer, head and the first document whose keys are not finite.
    """
    if bool(torch.isfinite(attention).all()):
        return
    row = int(torch.nonzero(~torch.isfinite(attention))[0, 0])
    layer, head = heads[row]
    for _, of_layer in sorted(keys.items()):  # the first layer, since a later one may have spread it to other tokens
        broken = ~torch.isfinite(of_layer).all(dim=0).all(dim=-1).cpu()  # (tokens,)
        documents = document_of[broken & (document_of != OUTSIDE)]
        if len(documents):
            raise NotFiniteError(layer, head, int(documents[0]))
    raise NotFiniteError(layer, head, None)


def _bins(document_of: Tensor, num_documents: int) -> Tensor:
    return document_of.where(document_of != OUTSIDE, num_documents)


def _sum_by_document(values: Tensor, document_of: Tensor, num_documents: int) -> Tensor:
    """Sums by document, of the tokens of none in the last column. # (..., tokens) -> (..., documents + 1)"""
    sums = values.new_zeros(*values.shape[:-1], num_documents + 1)
    return sums.index_add(-1, _bins(document_of, num_documents), values)


@dataclass(frozen=True)
class Evidence:
    """What one document's tokens contributed, as the pass left it.

    Attributes:
        contributions: c(t) after the mask. # (tokens,)
        offsets: characters of each token, counted from the beginning of the label. # (tokens, 2)
        label: the label that the prompt puts before the document.
    """

    contributions: Tensor
    offsets: Tensor
    label: str


@dataclass(frozen=True)
class Reading:
    """What one query found in one list.

    Attributes:
        calibrated: c(t) of each head. # (heads, tokens)
        piece_of: number of the piece that each token belongs to, or OUTSIDE. # (tokens,)
        document_of_piece: place in the list of the document of each piece. # (pieces,)
        offsets: characters of each token, counted from its document's label. # (tokens, 2)
        labels: label of each document that was read, by its place.
    """

    calibrated: Tensor
    piece_of: Tensor
    document_of_piece: Tensor
    offsets: Tensor
    labels: dict[int, str]

    @classmethod
    def of_nothing(cls, num_heads: int) -> Self:
        """The reading of a list without text, for which no model runs."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(num_heads, 0), none, none, torch.zeros(0, 2, dtype=torch.int32), {})

    def head_scores(self, num_documents: int) -> Tensor:
        """s(d) of each head alone, masked by itself. # (heads, documents)"""
        return self._scores(self.calibrated, num_documents)[0]

    def scores(self, num_documents: int) -> tuple[Tensor, list[Evidence | None]]:
        """s(d) of the selected heads together, and what each document's tokens contributed. # (documents,)"""
        scores, contributions = self._scores(self.calibrated.sum(dim=0), num_documents)
        document_of = self.document_of_piece[self.piece_of].where(self.piece_of != OUTSIDE, OUTSIDE)  # (tokens,)
        order = document_of.argsort(stable=True)
        sizes = torch.bincount(document_of - OUTSIDE, minlength=num_documents + 1).tolist()  # those of none first
        of_documents = contributions[order].split_with_sizes(sizes)[1:]
        offsets = self.offsets[order].split_with_sizes(sizes)[1:]
        found: list[Evidence | None] = [None] * num_documents
        for place, label in self.labels.items():  # on their own: a slice would be kept, and pickled, with its whole
            found[place] = Evidence(of_documents[place].clone(), offsets[place].clone(), label)
        return scores, found

    def _scores(self, calibrated: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
        num_pieces = len(self.document_of_piece)
        contributions = masked(calibrated, self.piece_of, num_pieces)  # (..., tokens)
        of_pieces = document_scores(contributions, self.piece_of, num_pieces)  # (..., pieces)
        scores, counted = pool_pieces(of_pieces, self.document_of_piece, num_documents)
        counted = torch.cat([counted, torch.zeros_like(counted[..., :1])], dim=-1)  # OUTSIDE is -1: the last
        return scores, contributions.where(counted[..., self.piece_of], 0.0)
