"""Head sets: which attention heads of which model are read, and how they were chosen.

Heads are `(layer, head)` pairs, both from 0, counting query heads (not key/value heads). The published sets come from
QRHead (Zhang et al., EMNLP 2025, arXiv 2506.09944), DySCO (arXiv 2602.22175) and CoRe heads (Tran et al., arXiv
2510.02219). This file loads no model: it compares shapes and names.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qrhead_rag.files import parse_json, write_text

Head: TypeAlias = tuple[int, int]
Mode: TypeAlias = Literal["listwise", "independent", "late"]
Readout: TypeAlias = Literal["published", "evidence"]
KeyDtype: TypeAlias = Literal["float16", "bfloat16", "float32", "int8"]

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def check_mode(mode: Mode | None) -> Mode | None:
    """The mode itself; None leaves it to the head set.

    Raises:
        ValueError: there is no such mode.
    """
    if mode is not None and mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r} is unknown; expected None or one of {', '.join(map(repr, get_args(Mode)))}")
    return mode


class ModelShape(NamedTuple):
    """The sizes of a whole model that a head set has to match.

    >>> str(ModelShape("llama", 30, 9))
    'llama, 30 layers of 9 heads'
    """

    architecture: str
    num_layers: int
    num_heads: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.num_layers} layers of {self.num_heads} heads"


def heads_of_layers(num_layers: int, shape: ModelShape) -> tuple[Head, ...]:
    """Every head of a model's first layers.

    >>> heads_of_layers(1, ModelShape("llama", 24, 2))
    ((0, 0), (0, 1))
    """
    return tuple((layer, head) for layer in range(num_layers) for head in range(shape.num_heads))


class HeadSet(BaseModel):
    """The selected heads of one model, best first, with the mode, criterion and data that chose them.

    Raises:
        ValueError: no heads, a head twice, or a head outside the model's layers and heads.

    >>> heads = HeadSet(model="org/model", num_layers=24, num_heads=16, heads=[(11, 4), (9, 0)], mode="late")
    >>> heads.max_layer
    11
    >>> HeadSet.model_validate_json(heads.model_dump_json()) == heads
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str = "unnamed"
    model: str
    architecture: str | None = None
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1, description="query heads of a layer")
    mode: Mode = "listwise"
    readout: Readout = Field(default="published", description="how attention became scores where they were found")
    criterion: str = "unknown"
    task: str = "unknown"
    num_examples: int | None = None
    source: str = "unknown"
    note: str | None = None
    default: bool = Field(default=False, description="what heads=None reads under this mode")
    recommended: bool = Field(default=False, description="what heads=None, mode=None reads of its model")
    heads: tuple[Head, ...]

    @field_validator("heads", mode="after")
    @classmethod
    def _check_heads(cls, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        if not heads:
            raise ValueError("a head set needs at least one (layer, head) pair, found none")
        repeated = sorted(head for head, count in Counter(heads).items() if count > 1)
        if repeated:
            raise ValueError(f"each head may be named once, found twice: {repeated}")
        return heads

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        for layer, head in self.heads:
            if not (0 <= layer < self.num_layers and 0 <= head < self.num_heads):
                raise ValueError(
                    f"head ({layer}, {head}) is outside {self.model}, which has layers 0 to {self.num_layers - 1} "
                    f"and heads 0 to {self.num_heads - 1}; correct the pair or name the model it belongs to"
                )
        return self

    @property
    def max_layer(self) -> int:
        """The last layer that has to run."""
        return max(layer for layer, _ in self.heads)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers of the model, and heads of each."""
        return self.num_layers, self.num_heads

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            OSError: no such file, or it cannot be read.
            ValueError: the file is not JSON, or not a head set of this version; the message names the file.
        """
        path = Path(path)
        try:
            return cls.model_validate(parse_json(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON ({error}); expected a file written by HeadSet.save") from error
        except ValidationError as error:
            raise ValueError(f"{path} is not a head set: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, in one step; `load` reads it back."""
        write_text(path, self.model_dump_json(indent=1, exclude_none=True) + "\n")

    def check_belongs_to(self, model: str, shape: ModelShape) -> None:
        """Refuse the set of another model; warn where only the name differs (a fine-tune, a mirror, a local folder).

        Raises:
            ValueError: architecture, layer count or head count differ; the message names both models.
        """
        differs = self.architecture not in (None, shape.architecture) or self.shape != shape[1:]
        if differs:
            own_shape = ModelShape(self.architecture or "any architecture", *self.shape)
            raise ValueError(
                f"head set {self.name!r} belongs to {self.model} ({own_shape}), but the model is {model} ({shape}); "
                f"choose a set of this model (`qrhead heads`) or find one (`qrhead detect --model {model}`)"
            )
        if self.model != model:
            warnings.warn(
                f"head set {self.name!r} was found on {self.model} and is used on {model}, which has the same shape; "
                "fine for a mirror, a copy or a light fine-tune, otherwise detect heads anew",
                UserWarning,
                stacklevel=2,
            )


DEFAULT_READOUTS: dict[Mode, Readout] = {"listwise": "published", "independent": "evidence", "late": "evidence"}
"""How the attention of heads becomes scores, where no measured head set says it (benchmarks/reports/readouts.md)."""


def readout_of(heads: HeadSet, mode: Mode) -> Readout:
    """The readout of a head set; that of the mode, where the heads are read under another than their own."""
    return heads.readout if heads.mode == mode else DEFAULT_READOUTS[mode]


@cache
def shipped_head_sets() -> tuple[HeadSet, ...]:
    """All head sets of the package."""
    text = resources.files("qrhead_rag").joinpath("data/head_sets.json").read_text(encoding="utf-8")
    return tuple(HeadSet.model_validate(entry) for entry in json.loads(text))


def is_shipped_for(model: str) -> bool:
    """Whether any head set is shipped for a model.

    >>> is_shipped_for(EMBEDDED_MODEL), is_shipped_for("org/model")
    (True, False)
    """
    return bool(_shipped_for(model))


def recommended_mode(model: str) -> Mode:
    """The mode in which the shipped heads of a model rank best; `listwise`, the published mode, if it has none.

    >>> recommended_mode("HuggingFaceTB/SmolLM2-135M-Instruct")
    'late'
    """
    return next((heads.mode for heads in _shipped_for(model) if heads.recommended), "listwise")


def find_shipped(model: str, mode: Mode | None, name: str | None = None) -> HeadSet:
    """The shipped head set of a model.

    Args:
        model: the model's name.
        mode: the mode that the heads are read under; None means the model's recommended mode. If the model has no set
            for this mode, that of the recommended mode is taken: heads carry over, though heads detected under the
            same mode rank better.
        name: name or task of the set; None takes the default.

    Raises:
        ValueError: the model has no shipped set, or none of that name; the message lists the names.

    >>> find_shipped("HuggingFaceTB/SmolLM2-135M-Instruct", "listwise").heads
    ((17, 3), (17, 4), (18, 6), (18, 7))
    """
    head_sets = _shipped_for(model)
    if not head_sets:
        raise ValueError(
            f"no head set is shipped for {model} (`qrhead heads` lists those there are); leave heads out, and they are "
            "found at first use, or find them on examples of your own with `qrhead detect --model "
            f"{model} DATA --out heads.json` and pass heads='heads.json'"
        )
    matching = [s for s in head_sets if (s.default if name is None else name in (s.name, s.task))]
    if not matching:
        names = ", ".join(sorted({f"{s.name!r} ({s.mode})" for s in head_sets}))
        raise ValueError(f"{model} has no shipped head set named {name!r}; expected one of {names}, or a .json file")
    recommended = recommended_mode(model)
    mode = mode or recommended
    return min(matching, key=lambda s: (s.mode != mode, s.mode != recommended, s.name != name, not s.default))


def _shipped_for(model: str) -> list[HeadSet]:
    return [heads for heads in shipped_head_sets() if heads.model.casefold() == model.casefold()]


HeadChoice: TypeAlias = HeadSet | Path | str | Sequence[Sequence[int]] | None

HeadChooser: TypeAlias = Callable[[str, ModelShape], HeadSet]
"""From a model's name and shape to the heads that it is loaded for."""

SHIPPED = "shipped"
"""The choice of a shipped set: where there is none, it is refused instead of found."""


def choose_heads(choice: HeadChoice | HeadChooser, model: str, shape: ModelShape, mode: Mode | None) -> HeadSet:
    """The head set that `heads=` asks for, checked against the model.

    Args:
        choice: None or "shipped" (the shipped default of model and mode), the name or task of a shipped set, "all", a
            path or a string ending in .json, a HeadSet, a list of (layer, head) pairs, or a function that chooses.
        model: the model's name.
        shape: the shape of the whole model.
        mode: the mode that the heads are read under; None takes the mode of the set. Pairs and "all" then get the
            model's recommended mode.

    Raises:
        TypeError: `choice` is none of these.
        ValueError: no such set, a set of another model, or a head out of range.

    >>> choose_heads([(1, 0)], "org/model", ModelShape("llama", 24, 16), mode="late").heads
    ((1, 0),)
    """
    fields: dict[str, Any] = {
        "model": model,
        "architecture": shape.architecture,
        "num_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "mode": mode or recommended_mode(model),
    }
    fields["readout"] = DEFAULT_READOUTS[fields["mode"]]
    match choice:
        case HeadSet():
            heads = choice
        case _ if callable(choice):
            heads = choice(model, shape)
        case Path():
            heads = HeadSet.load(choice)
        case str() if choice == "all":  # an array of pairs compares element by element
            every = heads_of_layers(shape.num_layers, shape)
            return HeadSet(**fields, name="all", criterion="all", source="every head of the model", heads=every)
        case str() if choice.endswith(".json"):
            heads = HeadSet.load(choice)
        case str() | None:
            heads = find_shipped(model, mode, None if choice == SHIPPED else choice)
        case _:
            try:
                pairs = tuple((_as_int(layer), _as_int(head)) for layer, head in choice)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"heads={choice!r} is not understood; expected None, the name of a shipped set, 'all', a path to "
                    "a .json file, a HeadSet, or a list of (layer, head) pairs of whole numbers"
                ) from error
            return HeadSet(**fields, name="given", criterion="given", source="given by the caller", heads=pairs)
    heads.check_belongs_to(model, shape)
    return heads


def parse_heads(heads: str | None) -> str | list[tuple[int, int]] | None:
    """Read pairs written like 17-3,18-6; any other choice is returned as it is.

    >>> parse_heads("17-3,18-6")
    [(17, 3), (18, 6)]
    """
    if heads is None or not re.fullmatch(r"\d+-\d+(,\d+-\d+)*", heads):
        return heads
    return [(int(layer), int(head)) for layer, head in (pair.split("-") for pair in heads.split(","))]


def _as_int(number: int) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{number!r} is not a whole number")
    return int(number)
