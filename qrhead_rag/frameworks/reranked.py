"""A document that a reranker keeps, and what is noted in its metadata where its text was cut or nothing was found."""

import hashlib
from dataclasses import dataclass
from typing import Any

from qrhead_rag.core.sentences import OMISSION, Span, cut_text

KEPT = "qrhead_kept"
FULL_TEXT_HASH = "qrhead_full_text_sha256"
ABSTAINED = "qrhead_abstained"


@dataclass(frozen=True)
class RerankedDocument:
    """A document that is kept, by its index.

    Attributes:
        index: in the list that was ranked.
        score: what orders the ranking; None where documents keep the order they were retrieved in.
        kept: characters of the text that `prune` keeps, as (start, end) in their order; None where nothing is pruned.
        omission: stands in a cut text where sentences were left out.
        abstained: whether the list had less evidence than `min_evidence` asks for.

    >>> reranked = RerankedDocument(0, 0.5, kept=((10, 35),))
    >>> reranked.cut("It rains. The ferry leaves at nine.")
    '[…] The ferry leaves at nine.'
    >>> reranked.notes("It rains. The ferry leaves at nine.")["qrhead_kept"]
    [[10, 35]]
    """

    index: int
    score: float | None = None
    kept: tuple[Span, ...] | None = None
    omission: str = OMISSION
    abstained: bool = False

    def cut(self, text: str) -> str:
        """The document's text cut to what is kept; the text itself where nothing is pruned."""
        return text if self.kept is None else cut_text(text, self.kept, self.omission)

    def notes(self, text: str) -> dict[str, Any]:
        """Metadata to add, plain data: of a pruned text what is kept of it and its hash, and that nothing was found.

        Args:
            text: of the document, not cut.
        """
        notes: dict[str, Any] = {}
        if self.kept is not None:
            notes[KEPT] = [list(span) for span in self.kept]
            notes[FULL_TEXT_HASH] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if self.abstained:
            notes[ABSTAINED] = True
        return notes
