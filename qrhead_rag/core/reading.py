"""What one query reads of one list, and the scores that a readout makes of it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qrhead_rag.core.heads import Readout
from qrhead_rag.core.scoring import OUTSIDE, document_scores, masked, pool_pieces, votes


@dataclass(frozen=True)
class Evidence:
    """What each token of one document contributed to its score.

    Attributes:
        contributions: those of the readout, which sum to the score. Shape: (tokens,)
        offsets: characters of each token, counted from the beginning of the label. Shape: (tokens, 2)
        label: the label that the prompt puts before the document.

    >>> evidence = Evidence(torch.tensor([0.0, 0.5]), offsets=torch.tensor([[0, 4], [4, 9]]), label="[1] ")
    >>> float(evidence.contributions.sum())
    0.5
    """

    contributions: Tensor
    offsets: Tensor
    label: str


@dataclass(frozen=True)
class Reading:
    """What one query reads of one list, from which all scores are computed.

    Attributes:
        readout: what makes scores of it.
        by_head: c(t) of each head under `published`, e(t) under `evidence`. Shape: (heads, tokens)
        piece_of: index of each token's piece, or OUTSIDE. Shape: (tokens,)
        document_of_piece: index of each piece's document in the list. Shape: (pieces,)
        offsets: characters of each token, counted from its document's label. Shape: (tokens, 2)
        labels: label of each document that was read, by its index.
        strengths: of each piece under `evidence`; None under `published`. Shape: (heads, pieces)

    >>> attention, offsets = torch.tensor([[1.0, 2.0, 4.0]]), torch.zeros(3, 2)
    >>> piece_of, document_of_piece = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
    >>> reading = Reading("published", attention, piece_of, document_of_piece, offsets, {0: "[1] ", 1: "[2] "})
    >>> scores, evidence = reading.scores(2)
    >>> scores.tolist(), evidence[0].contributions.tolist()
    ([3.0, 4.0], [1.0, 2.0])
    """

    readout: Readout
    by_head: Tensor
    piece_of: Tensor
    document_of_piece: Tensor
    offsets: Tensor
    labels: dict[int, str]
    strengths: Tensor | None = None

    @classmethod
    def of_nothing(cls, readout: Readout, num_heads: int) -> Self:
        """The reading of a list without text, for which no model runs."""
        none, of_heads = torch.zeros(0, dtype=torch.long), torch.zeros(num_heads, 0)
        strengths = None if readout == "published" else of_heads
        return cls(readout, of_heads, none, none, torch.zeros(0, 2, dtype=torch.int32), {}, strengths)

    def head_scores(self, num_documents: int) -> Tensor:
        """s(d) of each head alone. Shape: (heads, documents)

        Under `evidence` the scores are their mean; under `published` each head is masked by itself, and they add up to
        the scores but for the masks.
        """
        scores_of = self._published if self.readout == "published" else self._votes
        return scores_of(self.by_head, num_documents)[0]

    def scores(self, num_documents: int) -> tuple[Tensor, list[Evidence | None]]:
        """s(d) of the selected heads together, shape: (documents,), and the evidence of each document that was read."""
        if self.readout == "published":
            scores, contributions = self._published(self.by_head.sum(dim=0), num_documents)
        else:
            scores, contributions = (by_head.mean(dim=0) for by_head in self._votes(self.by_head, num_documents))
        document_of = self.document_of_piece[self.piece_of].where(self.piece_of != OUTSIDE, OUTSIDE)  # (tokens,)
        order = document_of.argsort(stable=True)
        sizes = torch.bincount(document_of - OUTSIDE, minlength=num_documents + 1).tolist()  # those of none first
        of_documents = contributions[order].split_with_sizes(sizes)[1:]
        offsets = self.offsets[order].split_with_sizes(sizes)[1:]
        evidence: list[Evidence | None] = [None] * num_documents
        for index, label in self.labels.items():  # clones: a slice would keep, and pickle, the whole tensor
            evidence[index] = Evidence(of_documents[index].clone(), offsets[index].clone(), label)
        return scores, evidence

    def list_evidence(self, scores: Tensor) -> float | None:
        """Equation (9): how much the list has for the query, from 0 to 1; None under `published`.

        It is the strength of the document with the highest score, the first of equal ones, and of a long one that of
        its strongest piece. It
        compares across lists of one model, head set, mode and instruction, best where they are of like length.

        Args:
            scores: s(d), as `scores` gives them. Shape: (documents,)
        """
        if self.strengths is None or not len(self.document_of_piece):
            return None if self.strengths is None else 0.0
        of_pieces = scores[self.document_of_piece]
        best = self.document_of_piece[of_pieces == of_pieces.max()].min()
        return float(self.strengths[:, self.document_of_piece == best].mean(dim=0).max())

    def _published(self, calibrated: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
        """Equation (3). Shape: (..., tokens) -> (..., documents) and (..., tokens)"""
        return self._pooled(masked(calibrated, self.piece_of, len(self.document_of_piece)), num_documents)

    def _votes(self, by_head: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
        """Equation (6) before its mean. Shape: (heads, documents) and (heads, tokens)"""
        return votes(*self._pooled(by_head, num_documents))

    def _pooled(self, contributions: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
        """Document scores, and the contributions of the pieces that count. Shape: (..., documents) and (..., tokens)"""
        num_pieces = len(self.document_of_piece)
        of_pieces = document_scores(contributions, self.piece_of, num_pieces)  # (..., pieces)
        scores, counted = pool_pieces(of_pieces, self.document_of_piece, num_documents)
        counted = torch.cat([counted, torch.zeros_like(counted[..., :1])], dim=-1)  # OUTSIDE is -1: the last
        return scores, contributions.where(counted[..., self.piece_of], 0.0)
