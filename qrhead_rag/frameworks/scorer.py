"""A QRRetriever described by its options: loaded at first use, shared by equal options, serialized by name.

Frameworks treat components as data: they copy, pickle, serialize and rebuild them. A loaded model is not data, so a
component has the options that load it, and the model beside them.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from qrhead_rag.core.heads import EMBEDDED_MODEL, Head, HeadSet, Mode
from qrhead_rag.ranking.by_name import check_loadable, is_in_memory
from qrhead_rag.ranking.loaded import LoadedRetrievers
from qrhead_rag.ranking.options import Layout, ListOptions
from qrhead_rag.ranking.passage_store import PassageStore
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.warn import warnings_of_threads as warnings_of_threads  # noqa: PLC0414 - for integrations

_loaded = LoadedRetrievers()


def _path_or_none(store: Any) -> str | bool | None:
    return store if isinstance(store, str | bool) else None


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
        store: where encoded passages are kept for every process (mode "late"): a file, True for one in the user's
            cache folder, or a byte store, such as those of LangChain. Only a file, or True, is serialized.
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
    store: Annotated[Any, PlainSerializer(_path_or_none), SkipJsonSchema()] = None
    options: dict[str, Any] = Field(default_factory=dict)
    scorer: Annotated[QRRetriever | None, SkipJsonSchema()] = Field(default=None, exclude=True, repr=False)

    @field_validator("model", "heads", "store", mode="before")
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
            if name == "store" and option is not None:
                option = PassageStore(option).choice  # the whole path, as the scorer names it
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
        """A copy of the options; the loaded model and the store stay shared."""
        memo = {} if memo is None else memo
        memo |= {id(shared): shared for shared in (self.scorer, self.store)}
        return super().__deepcopy__(memo)


def _loading_options(scorer: QRRetriever) -> dict[str, Any]:
    """The options of a component that load an equal scorer, on any device."""
    options = {"instruction": None, "layout": scorer.layout, "store": None, **scorer.loading_options()}
    own = {name: options.pop(name) for name in ("model", "heads", "mode", "instruction", "layout", "store")}
    return {**own, "options": {name: value for name, value in options.items() if name in _FURTHER}}


_FURTHER = {*ListOptions.model_fields, "revision", "gguf_file", "subfolder", "trust_remote_code"}


def _agree(option: Any, actual: Any) -> bool:
    if isinstance(actual, HeadSet) and not isinstance(option, HeadSet):
        return option in (None, actual.name, actual.task, actual.heads)
    return option is None or option == actual or is_in_memory(option)
