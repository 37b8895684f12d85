"""A ranking: the documents ordered by score, each with its index in the caller's list."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, overload

import torch
from torch import Tensor

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.pruning import Prune, ReadText, prune_texts
from qrhead_rag.core.reading import Evidence
from qrhead_rag.core.selection import Selection, fuse_ranks, rank_order, select
from qrhead_rag.core.sentences import OMISSION, cut_text
from qrhead_rag.ranking.explanation import Explanation, explain_passage


def blank_lowest(scores: Tensor, passages: Sequence[Passage]) -> Tensor:
    """Scores in which a blank passage, which is not read, has the lowest of the list; 0 where all are blank.

    Shape: (..., passages)
    """
    blank = torch.tensor([passage.is_blank for passage in passages], dtype=torch.bool)
    if bool(blank.all()):
        return torch.zeros_like(scores)
    lowest = scores.masked_fill(blank, torch.inf).amin(dim=-1, keepdim=True)  # (..., 1)
    return scores.where(~blank, lowest)


@dataclass(frozen=True)
class RankedPassage:
    """A passage with its index in the caller's list and its score.

    Attributes:
        index: in the list that was ranked.
        score: s(d); compares within this ranking only.
        passage: what the caller gave.
        truncated: whether only its beginning was read.
        fused_score: what orders the ranking where the first stage's order was fused with the heads' (`fuse_retrieval`);
            else None.
        kept: characters of `passage.text` that `prune` keeps, as (start, end) in their order; None where nothing was
            asked to be pruned.
        omission: what `pruned` has where sentences were left out.
        fallback: whether it is kept in the first stage's order, because the list has less evidence than asked for.

    >>> RankedPassage(index=3, score=0.25, passage=Passage(text="The keeper counts the ships.")).passage.text
    'The keeper counts the ships.'
    """

    index: int
    score: float
    passage: Passage
    truncated: bool = False
    fused_score: float | None = None
    kept: tuple[tuple[int, int], ...] | None = None
    omission: str = OMISSION
    fallback: bool = False

    @property
    def reason(self) -> str:
        """Why it is kept, in a few words.

        >>> RankedPassage(index=3, score=0.25, passage=Passage(text="The keeper counts the ships.")).reason
        'relevant, evidence 0.250'
        """
        if self.passage.is_blank:
            return "blank, not read"
        if self.fallback:
            return f"fallback to the first stage, evidence {self.score:.3f}"
        if self.fused_score is not None:
            return f"first stage and heads together {self.fused_score:.3f}, evidence {self.score:.3f}"
        return f"relevant, evidence {self.score:.3f}"

    @property
    def pruned(self) -> str:
        """The text cut to what is kept, with the sign of omission where sentences are missing; else the whole text."""
        text = self.passage.text
        return text if self.kept is None else cut_text(text, self.kept, self.omission)

    @property
    def ordering_score(self) -> float:
        """What orders the ranking: the fused score where there is one, else the score."""
        return self.score if self.fused_score is None else self.fused_score


def read_text(passage: Passage, evidence: Evidence | None) -> ReadText:
    """A passage's text with the evidence of its tokens."""
    tokens = explain_passage(0, 0.0, passage, evidence).tokens
    before = passage.content[: len(passage.content) - len(passage.text)]
    of_text = ((token.end - 1, token.contribution) for token in tokens if token.part == "text")
    return ReadText.of(passage.text, of_text, before)


@dataclass(frozen=True)
class Ranking(Sequence[RankedPassage]):
    """The kept passages, best first unless the original order was asked for.

    Attributes:
        query: the query.
        passages: the kept passages.
        mode: how the documents were run through the model.
        windowed: whether the list was longer than the model's context and ranked in sliding windows. The scores are
            then those of each document's last window, and the order is that of the windows.
        evidence: how much the list has for the query, from 0 to 1. It compares across lists of one model, head set,
            mode and instruction, and with nothing else; it is no probability. 0 for a list without text; None under the
            readout `published`; in sliding windows that of the last one, in which the best of all windows stand.
        abstained: whether the evidence is less than `min_evidence`: nothing was found.

    >>> from qrhead_rag import QRRetriever
    >>> retriever = QRRetriever(model, tokenizer, heads=[(1, 0), (2, 3)], mode="late")
    >>> ranking = retriever.rank("Who counts the ships?", ["Bread is baked at dawn.", "The keeper counts the ships."])
    >>> sorted(ranked.index for ranked in ranking)
    [0, 1]
    >>> ranking[0].score >= ranking[1].score
    True
    """

    query: str
    passages: tuple[RankedPassage, ...]
    mode: Mode
    windowed: bool = False
    evidence: float | None = None
    abstained: bool = False
    _token_evidence: tuple[Evidence | None, ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        query: str,
        passages: Sequence[Passage],
        scores: Tensor,
        evidence: Sequence[Evidence | None],
        selection: Selection,
        token_counts: Sequence[int] | None,
        mode: Mode,
        truncated: Collection[int],
        *,
        retrieval_scores: Sequence[float] | None = None,
        windowed: bool = False,
        order: Sequence[int] | None = None,
        list_evidence: float | None = None,
        prune: Prune | None = None,
        count_tokens: Callable[[str], int] = len,
    ) -> Self:
        """What is kept of a list that was read, best first or in its own order. Blank passages stand last.

        Args:
            query: the query.
            passages: the whole list.
            scores: s(d) of each passage; those of blank ones do not matter. Shape: (passages,)
            evidence: what each passage's tokens contributed; None for one that was not read.
            selection: what is kept.
            token_counts: tokens of each passage, needed with `selection.max_tokens`.
            mode: how the documents were run through the model.
            truncated: indices of the passages that were read only in part.
            retrieval_scores: of each passage by the first stage, for `selection.fuse_retrieval`; None is the list's
                order.
            windowed: whether the list was ranked in windows.
            order: indices of the passages that are not blank, best first, where that is not the order of their scores.
            list_evidence: of the list, see `evidence`.
            prune: which sentences are kept of the kept passages.
            count_tokens: of a text, for `prune.max_tokens`.

        Raises:
            ValueError: a floor of evidence where there is none to compare it with.
        """
        abstained = selection.refuses(list_evidence)
        values = blank_lowest(scores, passages).tolist()
        best_first = rank_order(values) if order is None else order
        if abstained:
            best_first = range(len(passages)) if retrieval_scores is None else rank_order(retrieval_scores)
            selection = selection.model_copy(update={"min_share": None, "fuse_retrieval": None})
        blank = [index for index, passage in enumerate(passages) if passage.is_blank]
        read = [index for index in best_first if not passages[index].is_blank]
        fused: dict[int, float] = {}
        if selection.fuse_retrieval is not None:
            fused = fuse_ranks(read, retrieval_scores, selection.fuse_retrieval)
            read.sort(key=lambda index: -fused[index])
        nothing = abstained and selection.fallback == "empty"
        indices = [] if nothing else select(values, selection, token_counts, [*read, *blank])
        ranked = [
            RankedPassage(
                index, values[index], passages[index], index in truncated, fused.get(index), fallback=abstained
            )
            for index in indices
        ]
        if prune is not None:
            texts = [read_text(*whole) for whole in zip(passages, evidence, strict=True)]
            spans = prune_texts(texts, indices, prune, count_tokens)
            ranked = [replace(r, kept=spans[r.index], omission=prune.omission) for r in ranked if r.index in spans]
        return cls(query, tuple(ranked), mode, windowed, list_evidence, abstained, tuple(evidence))

    @property
    def token_evidence(self) -> tuple[Evidence | None, ...]:
        """What each token contributed, of every passage of the list; nothing where the ranking was made by hand."""
        return self._token_evidence or ()

    @property
    def truncated(self) -> tuple[int, ...]:
        """Indices (in the caller's list) of the kept documents of which only the beginning was read."""
        return tuple(ranked.index for ranked in self.passages if ranked.truncated)

    def explain(self) -> Explanation:
        """Per token of every kept passage, what it contributed to the score.

        Raises:
            ValueError: the ranking was made by hand.
        """
        evidence = self._token_evidence
        if evidence is None:
            raise ValueError(
                "this ranking was made by hand and does not hold what each token contributed; expected one that "
                "QRRetriever.rank or EncodedPassages.rank gave: explain that one"
            )
        explained = (
            replace(explain_passage(r.index, r.score, r.passage, evidence[r.index], r.truncated), reason=r.reason)
            for r in self.passages
        )
        return Explanation(self.query, tuple(explained), self.abstained)

    def _repr_html_(self) -> str:
        """The ranking itself; `explain()` shows what decided."""
        from qrhead_rag.show.html import ranking_html

        return ranking_html(self)

    @overload
    def __getitem__(self, index: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[index]

    def __len__(self) -> int:
        return len(self.passages)

    def __iter__(self) -> Iterator[RankedPassage]:
        return iter(self.passages)
