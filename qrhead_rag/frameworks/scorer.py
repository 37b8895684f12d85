"""A QRRetriever described by its options: loaded at first use, shared by all that describe the same, sent by name.

Frameworks keep their components as data: they copy them, pickle them, write them as JSON and build them again. A loaded
model is none of these, so a component carries a description, and the model beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self
from weakref import WeakValueDictionary

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from qrhead_rag.core.heads import EMBEDDED_MODEL, Head, HeadSet, Mode, shipped_head_sets
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import INSTRUCTION
from qrhead_rag.core.selection import Selection
from qrhead_rag.ranking.context import Layout
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever

_IN_MEMORY = "in-memory:"  # begins the name of a model that came from nowhere, so that no other is taken in its place

_loaded: "WeakValueDictionary[str, QRRetriever]" = WeakValueDictionary()
_loading = Lock()


class ScorerOptions(BaseModel):
    """Which QRRetriever ranks: one already loaded (`scorer`), or the one that the other options describe.

    Attributes:
        model: hub id or folder of the model; None is the embedded small model.
        heads: None, the name of a shipped set, "all", a path to a .json file, a HeadSet, or (layer, head) pairs.
        mode: how the documents are run through the model; None is the mode in which the heads were found to rank best.
        layout: "given" or "reversed": how the list is laid into the prompt.
        instruction: replaces the instruction before the query.
        device: where the model is loaded; None takes an accelerator where there is one.
        dtype: what its weights are loaded as; None is float32 on CPU, the checkpoint's own elsewhere.
        options: any other option of QRRetriever.from_pretrained (revision, trust_remote_code, window, piece_tokens …).
        scorer: a loaded QRRetriever, used as it is and where it is. The other options then describe it.

    Raises:
        ValueError: an option contradicts `scorer`, or the described model lived in memory only.
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
        for name, found in _description(self.scorer).items():
            given = getattr(self, name)
            if name in self.model_fields_set and not _agree(given, found):
                raise ValueError(
                    f"{name}={given!r} contradicts scorer={self.scorer!r}, whose {name} is {found!r}; "
                    f"leave {name} out, or build the QRRetriever with it"
                )
            setattr(self, name, found)
        return self

    @property
    def name_of_model(self) -> str:
        """Hub id or folder of the model that ranks."""
        return self.model or EMBEDDED_MODEL

    def load_scorer(self) -> QRRetriever:
        """The QRRetriever, loaded by whoever asks first and shared by all whose options are equal.

        Raises:
            OSError, ValueError: as `QRRetriever.from_pretrained`.
        """
        if self.scorer is None:
            self._check_loadable()
            names = ScorerOptions.model_fields.keys() - {"options", "scorer"}
            described = {**self.options, **{name: getattr(self, name) for name in names}}
            with _loading:
                scorer = _loaded.get(_key(described))
                if scorer is None:
                    scorer = QRRetriever.from_pretrained(**described)
                    # Known under its full description too: what an equal component reads from its serialized form.
                    found = _description(scorer)
                    for options in (described, {**described, **found.pop("options"), **found}):
                        _loaded.setdefault(_key(options), scorer)
            self.scorer = scorer
        return self.scorer

    def _check_loadable(self) -> None:
        if self.model is not None and self.model.startswith(_IN_MEMORY):
            raise ValueError(
                f"the model of this {type(self).__name__} was a {self.model.removeprefix(_IN_MEMORY)} that lived in "
                "memory only, so it cannot be loaded again; pass scorer= with a QRRetriever of it"
            )

    def __getstate__(self) -> dict[Any, Any]:
        """Pickled without the loaded model, which is loaded again where it is needed."""
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
    """A component that keeps the best of what was retrieved: which QRRetriever ranks, and how much of it is kept.

    Attributes:
        top_n: documents to keep; None keeps all.
        min_share: keep documents with at least this share (0 to 1) of the list's positive score mass.
        max_tokens: keep whole documents, best first, within this many tokens of the ranking model.
        title_key: metadata key of a document's title, which then stands before the text as the model's prompt has it.

    Raises:
        ValueError: an option out of range, or as in `ScorerOptions`.
    """

    top_n: int | None = 5
    min_share: float | None = None
    max_tokens: int | None = None
    title_key: str | None = None

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        Selection(**self._selection())
        return self

    def rank(self, query: str, passages: Sequence[Passage]) -> Ranking:
        """The passages to keep, best first."""
        return self.load_scorer().rank(query, passages, **self._selection())

    def title_of(self, metadata: Mapping[str, Any]) -> str | None:
        """The title that a document's metadata names."""
        title = metadata.get(self.title_key) if self.title_key else None
        return None if title is None else str(title)

    def _selection(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "min_share": self.min_share, "max_tokens": self.max_tokens}


def _key(options: dict[str, Any]) -> str:
    return repr(sorted(options.items()))


def _description(scorer: QRRetriever) -> dict[str, Any]:
    """The options that load an equal scorer, on whatever device there is then."""
    shipped = {heads.model for heads in shipped_head_sets()}
    unnamed = not scorer.model.name_or_path and scorer.model_name not in shipped
    reading = scorer.options.model_dump(exclude_defaults=True, exclude={"layout", "instruction"})
    return {
        "model": f"{_IN_MEMORY}{scorer.model_name}" if unnamed else scorer.model_name,
        "heads": scorer.heads,
        "mode": scorer.mode,
        "layout": scorer.layout,
        "instruction": None if scorer.instruction == INSTRUCTION else scorer.instruction,
        "options": reading,
    }


def _agree(given: Any, found: Any) -> bool:
    if isinstance(found, HeadSet) and not isinstance(given, HeadSet):
        return given in (None, found.name, found.task, found.heads)
    return given is None or given == found or str(given).startswith(_IN_MEMORY)
