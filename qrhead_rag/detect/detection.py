"""Labelled examples to a head set: which heads of a model find what a query needs, and what they are worth.

    retriever = QRRetriever.from_pretrained(model, heads="all", mode="late")
    recording = record(retriever, examples, "scores/")
    detection = detect({"nq": recording}, retriever.model_name, retriever.shape, retriever.mode)
    detection.head_set("nq").save("heads.json")

Everything is computed from recorded scores (recording.py), so another criterion or number of heads costs seconds.
Several data sets count alike, whatever their sizes.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from qrhead_rag.core.heads import Mode, ModelShape
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
    copying: Tensor | None = None,
) -> Detection:
    """Choose heads on recorded examples and report what they are worth.

    Args:
        recordings: for each data set, its recorded examples.
        model: name of the model they were recorded on.
        shape: its shape.
        mode: the mode they were recorded under.
        options: how to choose.
        copying: the copying score of every head (copying.py), to report its overlap. # (heads,)

    Raises:
        ValueError: fewer usable examples than folds, scores of another model, or no heads in the layers allowed.
        ImportError: the extra `eval` is not installed.
    """
    options = options or DetectionOptions()
    examples = _Examples(recordings, shape, options)
    count = shape.num_layers * shape.num_heads
    layers = torch.arange(count) // shape.num_heads  # (heads,)
    eligible = layers <= (shape.num_layers if options.max_layer is None else options.max_layer)
    values = examples.values(count, options.temperature)
    heads = _Chooser(examples, values, eligible)

    by_num_heads, everything, size = heads.against_number(options)
    best = best_heads(values[options.criterion], examples.weights, eligible)[:size]
    by_depth = heads.against_depth(size, layers)
    chosen_quality, all_quality, random_quality = everything[options.criterion], everything["all"], everything["random"]
    firm = stability(values[options.criterion], examples.groups, eligible, size, seed=options.seed)
    means: dict[str, Tensor] = {name: examples.weights @ found for name, found in values.items()}
    if copying is not None:
        means |= {"copying": copying}
    others = {name: best_heads(found[None], torch.ones(1), eligible)[:size] for name, found in means.items()}
    return Detection(
        model=model,
        architecture=shape.architecture,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        mode=mode,
        options=options,
        data=examples.used,
        chosen=tuple(
            ChosenHead(
                layer=head // shape.num_heads,
                head=head % shape.num_heads,
                value=float(means[options.criterion][head]),
                frequency=frequency,
            )
            for head, frequency in zip(best, firm.frequency, strict=True)
        ),
        quality={
            name: examples.quality(found.mean(dim=1) if found.ndim > 1 else found) for name, found in everything.items()
        },
        p_value_all=paired_test(chosen_quality.tolist(), all_quality.tolist(), options.seed).p_value,
        random_spread=float((examples.weights @ random_quality).std()) if options.random_sets > 1 else 0.0,
        by_num_heads=by_num_heads,
        by_depth=by_depth,
        values={
            name: tuple(tuple(row) for row in found.view(shape.num_layers, shape.num_heads).tolist())
            for name, found in means.items()
        },
        stability=firm,
        overlap={name: overlap(best, found) for name, found in others.items() if name != options.criterion},
    )


class _Examples:
    """The usable recorded examples of all data sets, with their folds and weights."""

    def __init__(self, recordings: Mapping[str, Recording], shape: ModelShape, options: DetectionOptions) -> None:
        usable = {name: recording.usable() for name, recording in recordings.items()}
        if empty := [name for name, recording in usable.items() if not len(recording)]:
            raise ValueError(
                f"{', '.join(empty)} has no example with relevant and other documents, which alone tell heads apart; "
                "leave it out, or give longer lists (candidates=, --candidates)"
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

    def values(self, count: int, temperature: float) -> dict[Criterion, Tensor]:
        """What each head is worth on each example, for each criterion. # (examples, heads)"""
        found: dict[Criterion, list[Tensor]] = {criterion: [] for criterion in CRITERIA}
        for recorded in self:
            if recorded.scores.shape[0] != count:
                raise ValueError(f"scores of {recorded.scores.shape[0]} heads were recorded, the model has {count}")
            for criterion, rows in found.items():
                rows.append(head_values(recorded, criterion, temperature))
        return {criterion: torch.stack(rows) for criterion, rows in found.items()}

    def training(self, fold: int) -> Tensor:
        """Weights of the examples outside a fold, 0 for those in it. # (examples,)"""
        return self.weights * torch.tensor([one != fold for one in self.folds])

    def quality(self, values: Tensor) -> Quality:
        """Mean over data sets and standard error of a number for each example. # (examples,)"""
        mean = self.weights @ values
        return Quality(mean=float(mean), error=float(((self.weights**2) @ (values - mean) ** 2).sqrt()))


class _Chooser:
    """Chooses heads on all folds but one and ranks that one, for every curve."""

    def __init__(self, examples: _Examples, values: Mapping[Criterion, Tensor], eligible: Tensor) -> None:
        self._examples = examples
        self._values = values
        self._eligible = eligible

    def _ranked(self, criterion: Criterion, fold: int, eligible: Tensor) -> list[int]:
        return best_heads(self._values[criterion], self._examples.training(fold), eligible)

    def against_number(self, options: DetectionOptions) -> tuple[dict[str, Curve], dict[str, Tensor], int]:
        """Curves against the number of heads; quality on each example of the number chosen, and of the controls."""
        examples, available = self._examples, int(self._eligible.sum())
        asked = () if options.num_heads == "auto" else (options.num_heads,)
        sizes = sorted({size for size in (*SIZES, *asked) if size <= available})
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
        found = set_quality(examples, examples.folds, sets)  # (examples, criteria * sizes + 1)
        by_criterion = dict(zip(CRITERIA, found[:, :-1].chunk(len(CRITERIA), dim=1), strict=True))
        size = asked[0] if asked else smallest_as_good(by_criterion[options.criterion], examples.weights, sizes)
        draw = random.Random(options.seed)
        drawn = [draw.sample(allowed, size) for _ in range(options.random_sets)]
        at_size = {str(name): quality[:, sizes.index(size)] for name, quality in by_criterion.items()}
        controls = {
            "all": found[:, -1],
            "random": set_quality(examples, examples.folds, [drawn] * examples.num_folds),
        }
        curves = {name: self._curve(sizes, quality) for name, quality in by_criterion.items()}
        return {str(name): curve for name, curve in curves.items()}, at_size | controls, size

    def against_depth(self, size: int, layers: Tensor) -> dict[str, Curve]:
        """Curves against the deepest layer allowed, with `size` heads or as many as there are."""
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
        found = set_quality(examples, examples.folds, sets)  # (examples, criteria * depths)
        split = zip(CRITERIA, found.chunk(len(CRITERIA), dim=1), strict=True)
        return {name: self._curve(depths, quality) for name, quality in split}

    def _curve(self, x: Sequence[int], quality: Tensor) -> Curve:
        return Curve(x=tuple(x), quality=tuple(self._examples.quality(column) for column in quality.T))
