"""A QRRetriever described by its options: loaded at first use, shared by equal options, serialized by name.

Frameworks treat components as data: they copy, pickle, serialize and rebuild them. A loaded model is not data, so a
component has the options that load it, and the model beside them.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from qrhead_rag.core.heads import EMBEDDED_MODEL, Head, HeadSet, Mode, is_shipped_for
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.scoring import NotFiniteError
from qrhead_rag.core.selection import Selection, select
from qrhead_rag.ranking.by_name import check_loadable, is_in_memory
from qrhead_rag.ranking.context import document_name
from qrhead_rag.ranking.loaded import LoadedRetrievers
from qrhead_rag.ranking.options import Layout, ListOptions
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.warn import warn_caller
from qrhead_rag.ranking.warn import warnings_of_threads as warnings_of_threads  # noqa: PLC0414 - for integrations

_loaded = LoadedRetrievers()


class ScorerOptions(BaseModel):
    """Which QRRetriever ranks: a loaded one (`scorer`), or the one that the other options load.

    Attributes:
        model: hub id or folder of the model; None is the embedded small model.
        heads: None (a model without a shipped set finds its heads at first use), "shipped" (refuses such a model), the
            name of a shipped set, "all", a path to a .json file, a HeadSet, or (layer, head) pairs.
        mode: how the documents are run through the model; None is the heads' own mode.
        layout: "given" or "reversed": how the list is laid into the prompt.
        instruction: replaces the instruction before the query.
        device: where the model is loaded; None takes an accelerator where there is one.
        dtype: what its weights are loaded as; None is float32 on CPU, the checkpoint's own elsewhere.
        options: any other option of QRRetriever.from_pretrained (revision, trust_remote_code, window, piece_tokens …).
        scorer: a loaded QRRetriever, used as it is; the other options then describe it.

    Raises:
        ValueError: an option contradicts `scorer`, or the model was never saved.

    >>> options = ScorerOptions(mode="late", options={"piece_tokens": 128})
    >>> ScorerOptions(**options.model_dump()) == options  # serializable; the model is loaded by load_scorer()
    True
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | None = None
    heads: HeadSet | str | tuple[Head, ...] | None = None
    mode: Mode | None = None
    layout: Layout = "given"
    instruction: str | None = None
    device: str | None = None
    dtype: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    scorer: Annotated[QRRetriever | None, SkipJsonSchema()] = Field(default=None, exclude=True, repr=False)

    @field_validator("model", "heads", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("device", "dtype", mode="before")
    @classmethod
    def _torch_as_text(cls, value: Any) -> Any:
        return str(value).removeprefix("torch.") if isinstance(value, torch.device | torch.dtype) else value

    @model_validator(mode="after")
    def _describe_scorer(self) -> Self:
        if self.scorer is None:
            self._check_loadable()
            return self
        for name, actual in _loading_options(self.scorer).items():
            option = getattr(self, name)
            if name in self.model_fields_set and not _agree(option, actual):
                raise ValueError(
                    f"{name}={option!r} contradicts scorer={self.scorer!r}, whose {name} is {actual!r}; "
                    f"leave {name} out, or build the QRRetriever with it"
                )
            setattr(self, name, actual)
        return self

    @property
    def name_of_model(self) -> str:
        """Hub id or folder of the model that ranks."""
        return self.model or EMBEDDED_MODEL

    def load_scorer(self) -> QRRetriever:
        """The QRRetriever, loaded by the first call and shared by all components with equal options.

        Raises:
            OSError, ValueError: as `QRRetriever.from_pretrained`.
        """
        if self.scorer is None:
            self._check_loadable()
            names = ScorerOptions.model_fields.keys() - {"options", "scorer"}
            self.scorer = _loaded.get({**self.options, **{name: getattr(self, name) for name in names}})
        return self.scorer

    @staticmethod
    def release_scorers() -> None:
        """Let go of the models that are kept for components to come; those of living components stay."""
        _loaded.release()

    def _check_loadable(self) -> None:
        check_loadable(self.model, self, "pass scorer= with a QRRetriever of it")

    def __getstate__(self) -> dict[Any, Any]:
        """Pickled without the loaded model, which load_scorer() loads again."""
        return super(ScorerOptions, self.model_copy(update={"scorer": None})).__getstate__()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._check_loadable()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy of the options; the loaded model stays shared."""
        memo = {} if memo is None else memo
        memo[id(self.scorer)] = self.scorer
        return super().__deepcopy__(memo)


class RerankOptions(ScorerOptions):
    """Options of a reranking component: which QRRetriever ranks, and how many documents are kept.

    Attributes:
        top_n: documents to keep; None keeps all.
        min_share: keep documents with at least this share (0 to 1) of the list's positive score mass.
        max_tokens: keep whole documents, best first, within this many tokens of the ranking model.
        fuse_retrieval: weight of the first stage's order beside the heads' (1 counts both alike); documents then come
            back with the fused score. None ranks by the heads alone.
        title_key: metadata key of a document's title, which the prompt puts before the text.
        on_blank_query: "raise" refuses a blank query; "keep_order" returns the first documents in the order they were
            retrieved in, without new scores, with a warning.

    Raises:
        ValueError: an option out of range, or as in `ScorerOptions`.

    >>> RerankOptions(top_n=3, title_key="name").title_of({"name": "Ferries"})
    'Ferries'
    """

    top_n: int | None = 5
    min_share: float | None = None
    max_tokens: int | None = None
    fuse_retrieval: float | None = None
    title_key: str | None = None
    on_blank_query: Literal["raise", "keep_order"] = "raise"

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        Selection(**self._selection())
        return self

    def rank(
        self, query: str, passages: Sequence[Passage], retrieval_scores: Sequence[float | None] | None = None
    ) -> list[tuple[int, float | None]]:
        """Indices of the passages to keep, best first, each with the score that orders it.

        There are no scores where the query is blank and `on_blank_query` keeps the order.

        Args:
            query: the question.
            passages: as they were retrieved.
            retrieval_scores: of each by the first stage, for `fuse_retrieval`. Where any is missing the order of the
                passages is taken for the first stage's, with a warning. None takes it without one.
        """
        if self.on_blank_query == "keep_order" and isinstance(query, str) and not query.strip():
            return [(index, None) for index in self._first(query, passages)]
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
            ranking = self.load_scorer().rank(query, passages, retrieval_scores=scores, **self._selection())
        except NotFiniteError as error:
            if error.document is not None:
                error.add_note(f"The document is {document_name(passages, error.document)}.")
            raise
        return [(ranked.index, ranked.ordering_score) for ranked in ranking]

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
            scorer = QRRetriever(reader.model, reader.tokenizer, heads=heads, model_name=reader.model_name, **options)
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

    def title_of(self, metadata: Mapping[str, Any]) -> str | None:
        """The title in a document's metadata."""
        title = metadata.get(self.title_key) if self.title_key else None
        return None if title is None else str(title)

    def _selection(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("top_n", "min_share", "max_tokens", "fuse_retrieval")}


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


def _loading_options(scorer: QRRetriever) -> dict[str, Any]:
    """The options of a component that load an equal scorer, on any device."""
    options = {"instruction": None, "layout": scorer.layout, **scorer.loading_options()}
    own = {name: options.pop(name) for name in ("model", "heads", "mode", "instruction", "layout")}
    return {**own, "options": {name: value for name, value in options.items() if name in _FURTHER}}


_FURTHER = {*ListOptions.model_fields, "revision", "gguf_file", "subfolder", "trust_remote_code"}


def _agree(option: Any, actual: Any) -> bool:
    if isinstance(actual, HeadSet) and not isinstance(option, HeadSet):
        return option in (None, actual.name, actual.task, actual.heads)
    return option is None or option == actual or is_in_memory(option)
