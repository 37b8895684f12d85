"""What a framework's reranker, and what encodes for it, are built from: their options, and passages of documents."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from qrhead_rag.core.heads import is_shipped_for
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.pruning import Prune
from qrhead_rag.core.scoring import NotFiniteError
from qrhead_rag.core.selection import Fallback, Selection, select
from qrhead_rag.frameworks.reranked import RerankedDocument
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.ranking.by_name import is_in_memory
from qrhead_rag.ranking.context import document_name
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.warn import warn_caller

_logger = logging.getLogger(__name__)


class PassageOptions(ScorerOptions):
    """Options of a component that makes passages of a framework's documents: which QRRetriever reads them, and how.

    Attributes:
        title_key: metadata key of a document's title, which the prompt puts before the text.

    >>> PassageOptions(title_key="name").title_of({"name": "Ferries"})
    'Ferries'
    """

    title_key: str | None = None

    def title_of(self, metadata: Mapping[str, Any]) -> str | None:
        """The title in a document's metadata."""
        title = metadata.get(self.title_key) if self.title_key else None
        return None if title is None else str(title)

    def store_passages(self, passages: Sequence[Passage], show_progress: bool) -> int:
        """Encode passages into the store; how many were not in it.

        Raises:
            OSError, ValueError: as `QRRetriever.encode_to_store`.
        """
        return self.load_scorer().encode_to_store(passages, show_progress=show_progress)


class EncoderOptions(PassageOptions):
    """Options of a component that encodes a framework's documents into a store.

    Attributes:
        show_progress: whether a bar shows the documents that have been encoded.

    Raises:
        ValueError: no store, or as in `ScorerOptions`.

    >>> EncoderOptions(store="chunks.db").store
    'chunks.db'
    """

    show_progress: bool = False

    @model_validator(mode="after")
    def _check_store(self) -> Self:
        if self.store is None:
            raise ValueError(
                f"{type(self).__name__} has no store; expected store=, the file that QRHeadReranker(store=) reads"
            )
        return self


class RerankOptions(PassageOptions):
    """Options of a reranking component: which QRRetriever ranks, and how many documents are kept.

    Attributes:
        top_n: documents to keep; None keeps all.
        min_share: keep documents with at least this share (0 to 1) of the list's positive score mass.
        max_tokens: keep whole documents, best first, within this many tokens of the ranking model.
        fuse_retrieval: weight of the first stage's order beside the heads' (1 counts both alike); documents then come
            back with the fused score. None ranks by the heads alone.
        prune: which sentences of the kept documents are kept: those of this share of the list's mean evidence per token
            (0.5), the best within so many tokens (200), or a `Prune`, which it becomes. None leaves documents whole.
        min_evidence: a list of less evidence than this (0 to 1) is refused, which is logged at the level INFO; None
            refuses none.
        fallback: what a refused list gives: "empty" no document, "first_stage" the first ones in the order they were
            retrieved in, without new scores, marked in their metadata.
        on_blank_query: "raise" refuses a blank query; "keep_order" returns the first documents in the order they were
            retrieved in, without new scores, with a warning.

    Raises:
        ValueError: an option out of range, or as in `ScorerOptions`.

    >>> RerankOptions(top_n=3).rank("When does the ferry leave?", [])
    []
    """

    top_n: int | None = 5
    min_share: float | None = None
    max_tokens: int | None = None
    fuse_retrieval: float | None = None
    prune: Prune | float | None = None
    min_evidence: float | None = None
    fallback: Fallback = "empty"
    on_blank_query: Literal["raise", "keep_order"] = "raise"

    @field_validator("prune", mode="before")
    @classmethod
    def _as_prune(cls, prune: Any) -> Prune | None:
        """Always a `Prune`: plain data does not tell a share of 1.0 from a budget of 1."""
        return Prune(**prune) if isinstance(prune, Mapping) else Prune.of(prune)

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        Selection(**self._selection())
        return self

    def rank(
        self, query: str, passages: Sequence[Passage], retrieval_scores: Sequence[float | None] | None = None
    ) -> list[RerankedDocument]:
        """The passages to keep, best first.

        They have no scores where they keep the order they were retrieved in: where the query is blank and
        `on_blank_query` keeps it, and where the list was refused and `fallback` is "first_stage".

        Args:
            query: the question.
            passages: as they were retrieved.
            retrieval_scores: of each by the first stage, for `fuse_retrieval`. Where any is missing the order of the
                passages is taken for the first stage's, with a warning. None takes it without one.
        """
        if self.on_blank_query == "keep_order" and isinstance(query, str) and not query.strip():
            return [RerankedDocument(index) for index in self._first(query, passages)]
        scores = None
        if self.fuse_retrieval is not None and retrieval_scores is not None:
            scores = [score for score in retrieval_scores if score is not None]
            if len(scores) < len(passages):
                warn_caller(
                    f"{len(passages) - len(scores)} of {len(passages)} documents have no retrieval score; "
                    "fuse_retrieval takes their order for that of the first stage"
                )
                scores = None
        try:
            ranking = self.load_scorer().rank(
                query, passages, retrieval_scores=scores, prune=self.prune, **self._selection()
            )
        except NotFiniteError as error:
            if error.document is not None:
                error.add_note(f"The document is {document_name(passages, error.document)}.")
            raise
        if ranking.abstained:
            _logger.info(
                "nothing was found: the evidence of %d documents is %.4f, below min_evidence=%s; %d come back "
                "(fallback=%r)",
                len(passages),
                ranking.evidence,
                self.min_evidence,
                len(ranking),
                self.fallback,
            )
        return [
            RerankedDocument(
                ranked.index,
                None if ranking.abstained else ranked.ordering_score,
                ranked.kept,
                ranked.omission,
                ranking.abstained,
            )
            for ranked in ranking
        ]

    def with_heads_found_in(self, passages: Sequence[Passage], questions: int, show_progress: bool) -> Self:
        """The same component with heads that are found on questions made from these passages (`find_heads`).

        Raises:
            NoHeadsError, ValueError, ImportError: as `find_heads`.
        """
        from qrhead_rag.detect.finding import find_heads

        options = dict(self.options)
        if self.heads is None and self.scorer is None and not is_shipped_for(self.name_of_model):
            former = None
        else:
            former = self.load_scorer()
        lives_in_memory = is_in_memory(self.model)
        if former is not None and lives_in_memory:
            reader = former
        else:
            reader = QRRetriever.from_pretrained(
                self.model, heads="all", mode=self.mode, device=self.device, dtype=self.dtype, **options
            )
        heads = find_heads(
            reader.model,
            reader.tokenizer,
            passages,
            mode=self.mode or (former.mode if former else "late"),
            readout=options.get("readout"),
            questions=questions,
            model_name=reader.model_name,
            compare=former,
            show_progress=show_progress,
        )
        scorer = None
        if lives_in_memory:
            scorer = QRRetriever(
                reader.model,
                reader.tokenizer,
                heads=heads,
                model_name=reader.model_name,
                store=self.store,
                layout=self.layout,
                instruction=self.instruction,
                **options,
            )
        return self.model_copy(update={"heads": heads, "mode": heads.mode, "scorer": scorer})

    def _first(self, query: str, passages: Sequence[Passage]) -> list[int]:
        """Indices of the passages to keep in the order in which they were retrieved."""
        warn_caller(
            f"the query is blank ({query!r}), so the documents keep the order they were retrieved in "
            f"(on_blank_query={self.on_blank_query!r})"
        )
        counts = None
        if self.max_tokens is not None:
            counts = [self.load_scorer().count_tokens(passage.content) for passage in passages]
        selection = Selection(top_n=self.top_n, max_tokens=self.max_tokens)
        return select([0.0] * len(passages), selection, counts)

    def _selection(self) -> dict[str, Any]:
        names = ("top_n", "min_share", "max_tokens", "fuse_retrieval", "min_evidence", "fallback")
        return {name: getattr(self, name) for name in names}


def copy_containers(value: Any) -> Any:
    """A copy of nested mappings, lists, tuples and sets; what else they hold, arrays say, is shared.

    >>> metadata = {"pages": [3, 4]}
    >>> copy_containers(metadata)["pages"] is metadata["pages"]
    False
    """
    if isinstance(value, dict):
        copied = copy(value)
        copied.update((key, copy_containers(item)) for key, item in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(copy_containers, value))
    return copy(value) if isinstance(value, list | set) else value
