"""Plots of a detection: the value of every head, quality by number of heads and by depth.

Needs the extra `plot`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrhead_rag.detect.report import Curve, Detection
from qrhead_rag.show.plot import new_figure, plot_heads


def head_map(detection: Detection, criterion: str | None = None) -> Any:
    """The value of every head by a detection's criterion, the chosen heads ringed.

    Args:
        detection: the report.
        criterion: one of its `values`; by default the one that chose the heads.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: the report has no such criterion.
        ImportError: the extra `plot` is not installed.
    """
    criterion = criterion or detection.options.criterion
    if criterion not in detection.values:
        raise ValueError(f"no values of {criterion!r}; the report has {', '.join(detection.values)}")
    return plot_heads(detection.values[criterion], heads=detection.heads, title=f"{criterion}, {detection.mode}")


def curves(detection: Detection) -> Any:
    """Held-out nDCG@10 by number of heads and by deepest layer allowed, with the controls.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, detection.by_num_heads)
    _draw(right, detection.by_depth)
    left.axvline(len(detection.heads), color="red", linewidth=0.8)
    left.set(xscale="log", xlabel="heads", ylabel="nDCG@10, held out")
    right.axvline(max(layer for layer, _ in detection.heads), color="red", linewidth=0.8)
    right.set(xlabel="deepest layer allowed")
    for axes in (left, right):
        for name, style in (("all", "--"), ("random", ":")):
            axes.axhline(detection.quality[name].mean, color="grey", linestyle=style, label=name)
        axes.grid(alpha=0.3)
    left.legend()
    return figure


def save_plots(detection: Detection, folder: str | Path) -> list[Path]:
    """Write a head map for each criterion and the curves into a folder, as PNG, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {f"head_map_{name}.png": head_map(detection, name) for name in detection.values}
    figures["curves.png"] = curves(detection)
    paths = []
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=80)
        paths.append(folder / name)
    return paths


def _draw(axes: Any, by_criterion: Mapping[str, Curve]) -> None:
    for number, (name, curve) in enumerate(by_criterion.items()):
        colour = f"C{number}"  # of matplotlib's cycle
        means = [quality.mean for quality in curve.quality]
        errors = [quality.error for quality in curve.quality]
        axes.plot(curve.x, means, label=name, color=colour)
        low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)
