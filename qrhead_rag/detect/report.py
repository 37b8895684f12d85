"""Options and report of a detection as data: chosen heads, curves, controls; JSON by pydantic."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qrhead_rag.core.heads import Head, HeadSet, Mode, ModelShape, Readout
from qrhead_rag.detect.choosing import TEMPERATURE, Criterion, Stability


class DetectionOptions(BaseModel):
    """How heads are chosen.

    Attributes:
        criterion: the value of a head on an example.
        num_heads: how many are chosen, or "auto": the smallest number that ranks held-out examples as well as the best.
        max_layer: deepest layer a head may be in (from 0); every layer above the deepest chosen head is never run.
        temperature: of the criterion `contrastive`.
        folds: parts of the cross-validation.
        random_sets: draws of the control `random`.
        seed: of folds, draws and resamples.

    >>> DetectionOptions(criterion="mass", num_heads=4).num_heads
    4
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    criterion: Criterion = "contrastive"
    num_heads: int | Literal["auto"] = "auto"
    max_layer: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(gt=0)] = TEMPERATURE
    folds: Annotated[int, Field(ge=2)] = 5
    random_sets: Annotated[int, Field(ge=1)] = 20
    seed: int = 0

    @field_validator("num_heads", mode="after")
    @classmethod
    def _check_num_heads(cls, num_heads: int | str) -> int | str:
        if isinstance(num_heads, int) and num_heads < 1:
            raise ValueError(f"num_heads={num_heads} chooses none; expected 1 or more, or 'auto'")
        return num_heads

    def check_possible(self, num_examples: int, shape: ModelShape) -> None:
        """Refuse options that need more usable examples, or more heads, than there are.

        Raises:
            ValueError: fewer examples than folds, or more heads than there are in the layers allowed.
        """
        if num_examples < self.folds:
            raise ValueError(
                f"{num_examples} examples with relevant and other documents; expected at least {self.folds}, "
                "one for each fold of the cross-validation"
            )
        layers = shape.num_layers if self.max_layer is None else min(self.max_layer + 1, shape.num_layers)
        available = layers * shape.num_heads
        if self.num_heads != "auto" and self.num_heads > available:
            raise ValueError(f"num_heads={self.num_heads}: expected 1 to {available}, which is what max_layer allows")


class Quality(BaseModel):
    """nDCG@10 on held-out examples: mean over data sets, and its standard error.

    >>> Quality(mean=0.9, error=0.01).mean
    0.9
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    error: float


class Curve(BaseModel):
    """Quality by number of heads, or by deepest layer allowed.

    >>> Curve(x=(1, 2), quality=(Quality(mean=0.8, error=0.02), Quality(mean=0.9, error=0.01))).quality[1].mean
    0.9
    """

    model_config = ConfigDict(frozen=True)

    x: tuple[int, ...]
    quality: tuple[Quality, ...]


class ChosenHead(BaseModel):
    """A head with its value by the criterion, and the share of resamples that choose it again.

    >>> ChosenHead(layer=17, head=3, value=0.8, frequency=1.0).layer
    17
    """

    model_config = ConfigDict(frozen=True)

    layer: int
    head: int
    value: float
    frequency: float


class DataSetUsed(BaseModel):
    """The examples of a data set that were used: those with relevant and other documents.

    Attributes:
        name: of the data set.
        ids: of the examples used.
        num_unusable: examples without relevant or without other documents.
        num_documents: length of the shortest and of the longest list.

    >>> DataSetUsed(name="nq", ids=("7",), num_unusable=0, num_documents=(20, 20)).num_documents
    (20, 20)
    """

    model_config = ConfigDict(frozen=True)

    name: str
    ids: tuple[str | None, ...]
    num_unusable: int
    num_documents: tuple[int, int]


class Detection(BaseModel):
    """The report: chosen heads, their quality, and how stable the choice is.

    Attributes:
        model: name of the model; architecture, num_layers and num_heads are its shape.
        mode: of the recording.
        readout: of the recording.
        options: how heads were chosen.
        data: the examples used.
        chosen: the heads, best first.
        quality: of the chosen heads (cross-validated: chosen on the other folds), of each other criterion with as many
            heads, of `all` heads and of `random` sets.
        p_value_all: of the paired test of the chosen heads against all heads.
        random_spread: standard deviation over the random sets.
        by_num_heads: for each criterion, quality by number of heads.
        by_depth: for each criterion, quality by deepest layer allowed, with the chosen number of heads.
        values: for each criterion, the value of every head. Shape: (layers, heads)
        stability: of the chosen heads.
        overlap: share of the chosen heads that are among the same number by another criterion, or by `copying`.

    >>> report = Detection.model_construct(chosen=(ChosenHead(layer=17, head=3, value=0.8, frequency=1.0),))
    >>> report.heads
    ((17, 3),)
    """

    model_config = ConfigDict(frozen=True)

    model: str
    architecture: str
    num_layers: int
    num_heads: int
    mode: Mode
    readout: Readout
    options: DetectionOptions
    data: tuple[DataSetUsed, ...]
    chosen: tuple[ChosenHead, ...]
    quality: dict[str, Quality]
    p_value_all: float
    random_spread: float
    by_num_heads: dict[str, Curve]
    by_depth: dict[str, Curve]
    values: dict[str, tuple[tuple[float, ...], ...]]
    stability: Stability
    overlap: dict[str, float]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The chosen heads, best first."""
        return tuple((chosen.layer, chosen.head) for chosen in self.chosen)

    def to_json(self) -> str:
        """The whole report, a line for each attribute, numbers with six decimals."""
        lines = (
            f" {json.dumps(name)}: {json.dumps(value)}" for name, value in _round_floats(self.model_dump()).items()
        )
        return "{\n" + ",\n".join(lines) + "\n}"

    def head_set(self, name: str, *, note: str | None = None, default: bool = False) -> HeadSet:
        """The chosen heads as a head set that QRRetriever takes."""
        return HeadSet(
            name=name,
            model=self.model,
            architecture=self.architecture,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mode=self.mode,
            readout=self.readout,
            criterion=self.options.criterion,
            task="+".join(data.name for data in self.data),
            num_examples=sum(len(data.ids) for data in self.data),
            source="qrhead detect",
            note=note,
            default=default,
            heads=self.heads,
        )


def _round_floats(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _round_floats(item) for name, item in value.items()}
    return [_round_floats(item) for item in value] if isinstance(value, list | tuple) else value
