"""Labelled examples to a head set: which heads of a model rank relevant documents first.

    retriever = QRRetriever.from_pretrained(model, heads="all", mode="late")
    recording = record(retriever, examples, "scores/")
    detection = detect({"nq": recording}, retriever.model_name, retriever.shape, retriever.mode)
    detection.head_set("nq").save("heads.json")

Detection reads recorded scores (recording.py), so another criterion or number of heads costs seconds. Data sets have
equal weight, whatever their size.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from qrhead_rag.core.heads import DEFAULT_READOUTS, Mode, ModelShape, Readout
from qrhead_rag.detect.choosing import (
    CRITERIA,
    SIZES,
    Criterion,
    assign_folds,
    best_heads,
    group_weights,
    head_values,
    overlap,
    set_quality,
    smallest_as_good,
    stability,
)
from qrhead_rag.detect.recording import RecordedExample, Recording
from qrhead_rag.detect.report import ChosenHead, Curve, DataSetUsed, Detection, DetectionOptions, Quality
from qrhead_rag.evaluate.metrics import paired_test


def detect(
    recordings: Mapping[str, Recording],
    model: str,
    shape: ModelShape,
    mode: Mode,
    options: DetectionOptions | None = None,
    *,
    readout: Readout | None = None,
    copying: Tensor | None = None,
) -> Detection:
    """Choose heads on recorded examples and report their quality.

    Args:
        recordings: for each data set, its recorded examples.
        model: name of the model that recorded them.
        shape: of the model.
        mode: of the recording.
        options: of the choice.
        readout: of the recording; None is what heads="all" are read with under this mode.
        copying: the copying score of every head (copying.py), to report the overlap. Shape: (heads,)

    Raises:
        ValueError: fewer usable examples than folds, scores of another model, or no heads in the layers allowed.
        ImportError: the extra `eval` is not installed.
    """
    options = options or DetectionOptions()
    examples = _Examples(recordings, shape, options)
    values = examples.values(shape, options.temperature)
    count = values[options.criterion].shape[1]
    layers = torch.arange(count) // shape.num_heads  # (heads,)
    eligible = layers <= (shape.num_layers if options.max_layer is None else options.max_layer)
    heads = _Chooser(examples, values, eligible)

    by_num_heads, qualities, size = heads.curves_by_number(options)
    best = best_heads(values[options.criterion], examples.weights, eligible)[:size]
    by_depth = heads.curves_by_depth(size, layers)
    chosen_quality, all_quality, random_quality = qualities[options.criterion], qualities["all"], qualities["random"]
    choice_stability = stability(values[options.criterion], examples.groups, eligible, size, seed=options.seed)
    means: dict[str, Tensor] = {name: examples.weights @ rows for name, rows in values.items()}
    if copying is not None:
        means |= {"copying": copying}
    tops = {name: best_heads(mean[None], torch.ones(1), eligible)[:size] for name, mean in means.items()}
    return Detection(
        model=model,
        architecture=shape.architecture,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        mode=mode,
        readout=readout or DEFAULT_READOUTS[mode],
        options=options,
        data=examples.used,
        chosen=tuple(
            ChosenHead(
                layer=head // shape.num_heads,
                head=head % shape.num_heads,
                value=float(means[options.criterion][head]),
                frequency=frequency,
            )
            for head, frequency in zip(best, choice_stability.frequency, strict=True)
        ),
        quality={
            name: examples.quality(rows.mean(dim=1) if rows.ndim > 1 else rows) for name, rows in qualities.items()
        },
        p_value_all=paired_test(chosen_quality.tolist(), all_quality.tolist(), options.seed).p_value,
        random_spread=float((examples.weights @ random_quality).std()) if options.random_sets > 1 else 0.0,
        by_num_heads=by_num_heads,
        by_depth=by_depth,
        values={
            name: tuple(tuple(row) for row in mean.view(-1, shape.num_heads).tolist()) for name, mean in means.items()
        },
        stability=choice_stability,
        overlap={name: overlap(best, top) for name, top in tops.items() if name != options.criterion},
    )


class _Examples:
    """The usable recorded examples of all data sets, with their folds and weights."""

    def __init__(self, recordings: Mapping[str, Recording], shape: ModelShape, options: DetectionOptions) -> None:
        usable = {name: recording.usable() for name, recording in recordings.items()}
        if empty := [name for name, recording in usable.items() if not len(recording)]:
            raise ValueError(
                f"{', '.join(empty)} has no example with both relevant and other documents, which detection needs; "
                "leave it out, or make longer lists (candidates=, --candidates)"
            )
        self._recordings = list(usable.values())
        self.groups = [group for group, recording in enumerate(self._recordings) for _ in range(len(recording))]
        options.check_possible(len(self.groups), shape)
        self.folds = assign_folds(self.groups, options.folds, options.seed)
        self.num_folds = options.folds
        self.weights = group_weights(self.groups)  # (examples,)
        self.used = tuple(
            DataSetUsed(
                name=name,
                ids=tuple(example.id for example in recording.examples),
                num_unusable=len(recordings[name]) - len(recording),
                num_documents=(min(lengths), max(lengths)),
            )
            for name, recording in usable.items()
            for lengths in [[len(example.documents) for example in recording.examples]]
        )

    def __iter__(self) -> "chain[RecordedExample]":
        return chain.from_iterable(self._recordings)

    def values(self, shape: ModelShape, temperature: float) -> dict[Criterion, Tensor]:
        """The value of each recorded head, those of the first layers or of all, on each example, for each criterion.

        Shape: (examples, heads)
        """
        rows_of: dict[Criterion, list[Tensor]] = {criterion: [] for criterion in CRITERIA}
        whole, counts = shape.num_layers * shape.num_heads, set[int]()
        for recorded in self:
            counts.add(recorded.scores.shape[0])
            if len(counts) > 1 or max(counts) > whole or max(counts) % shape.num_heads:
                raise ValueError(
                    f"scores of {', '.join(map(str, sorted(counts)))} heads were recorded, the model has {whole}"
                )
            for criterion, rows in rows_of.items():
                rows.append(head_values(recorded, criterion, temperature))
        return {criterion: torch.stack(rows) for criterion, rows in rows_of.items()}

    def training(self, fold: int) -> Tensor:
        """Weights of the examples outside a fold, 0 for those in it. Shape: (examples,)"""
        return self.weights * torch.tensor([number != fold for number in self.folds])

    def quality(self, values: Tensor) -> Quality:
        """Mean over data sets, and its standard error, of a value for each example. Shape: (examples,)"""
        mean = self.weights @ values
        return Quality(mean=float(mean), error=float(((self.weights**2) @ (values - mean) ** 2).sqrt()))


class _Chooser:
    """Chooses heads on all folds but one and ranks that fold by them, for every curve."""

    def __init__(self, examples: _Examples, values: Mapping[Criterion, Tensor], eligible: Tensor) -> None:
        self._examples = examples
        self._values = values
        self._eligible = eligible

    def _ranked(self, criterion: Criterion, fold: int, eligible: Tensor) -> list[int]:
        return best_heads(self._values[criterion], self._examples.training(fold), eligible)

    def curves_by_number(self, options: DetectionOptions) -> tuple[dict[str, Curve], dict[str, Tensor], int]:
        """Curves by number of heads; quality on each example at the chosen number, and of the controls; that number."""
        examples, available = self._examples, int(self._eligible.sum())
        fixed = () if options.num_heads == "auto" else (options.num_heads,)
        sizes = sorted({size for size in (*SIZES, *fixed) if size <= available})
        every = list(range(len(self._eligible)))
        allowed = [head for head in every if self._eligible[head]]
        sets = [
            [
                ranked[:size]
                for criterion in CRITERIA
                for ranked in [self._ranked(criterion, fold, self._eligible)]
                for size in sizes
            ]
            + [every]
            for fold in range(examples.num_folds)
        ]
        quality = set_quality(examples, examples.folds, sets)  # (examples, criteria * sizes + 1)
        by_criterion = dict(zip(CRITERIA, quality[:, :-1].chunk(len(CRITERIA), dim=1), strict=True))
        size = fixed[0] if fixed else smallest_as_good(by_criterion[options.criterion], examples.weights, sizes)
        draw = random.Random(options.seed)
        drawn = [draw.sample(allowed, size) for _ in range(options.random_sets)]
        at_size = {str(name): columns[:, sizes.index(size)] for name, columns in by_criterion.items()}
        controls = {
            "all": quality[:, -1],
            "random": set_quality(examples, examples.folds, [drawn] * examples.num_folds),
        }
        curves = {str(name): self._curve(sizes, columns) for name, columns in by_criterion.items()}
        return curves, at_size | controls, size

    def curves_by_depth(self, size: int, layers: Tensor) -> dict[str, Curve]:
        """Curves by deepest layer allowed, with `size` heads or all there are."""
        examples = self._examples
        depths = sorted(set(layers[self._eligible].tolist()))
        sets = [
            [
                self._ranked(criterion, fold, self._eligible & (layers <= depth))[:size]
                for criterion in CRITERIA
                for depth in depths
            ]
            for fold in range(examples.num_folds)
        ]
        quality = set_quality(examples, examples.folds, sets)  # (examples, criteria * depths)
        by_criterion = zip(CRITERIA, quality.chunk(len(CRITERIA), dim=1), strict=True)
        return {name: self._curve(depths, columns) for name, columns in by_criterion}

    def _curve(self, x: Sequence[int], quality: Tensor) -> Curve:
        return Curve(x=tuple(x), quality=tuple(self._examples.quality(column) for column in quality.T))
