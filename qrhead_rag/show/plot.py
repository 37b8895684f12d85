"""Plots: the value of every head, the scores of a ranking.

Needs the extra `plot`. Figures are made without pyplot: no global state, no display; notebooks show them.
"""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from qrhead_rag.core.heads import Head
from qrhead_rag.extras import require_extra
from qrhead_rag.ranking.result import RankedPassage, Ranking
from qrhead_rag.show.ink import AGAINST, FOR, RGB, colour_of, printable

_LABEL_LENGTH = 40  # characters


def plot_heads(head_scores: Tensor | Sequence[Sequence[float]], *, heads: Sequence[Head] = (), title: str = "") -> Any:
    """The value of every head as a map, with the first layer at the bottom.

    With negative values, blue is above zero and orange below; otherwise light is high.

    Args:
        head_scores: a number for every head. Shape: (layers, heads)
        heads: (layer, head) pairs to ring.
        title: of the map.

    Returns:
        A matplotlib Figure; `savefig("heads.png")` writes it.

    Raises:
        ValueError: not a number for every head of every layer, or a ringed head outside the map.
        ImportError: the extra `plot` is not installed.
    """
    try:
        values = torch.as_tensor(head_scores, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(f"head_scores has no number for every head of every layer: {error}") from error
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"head_scores has the shape {tuple(values.shape)}; expected (layers, heads)")
    num_layers, num_heads = values.shape
    absent = [head for head in heads if not (0 <= head[0] < num_layers and 0 <= head[1] < num_heads)]
    if absent:
        raise ValueError(f"heads {absent} are not on a map of {num_layers} layers of {num_heads} heads, from (0, 0)")
    figure = new_figure(max(4.0, 0.25 * num_heads + 2), max(4.0, 0.2 * num_layers + 1))
    axes = figure.subplots()
    image = axes.imshow(values.tolist(), origin="lower", aspect="auto", **_scale(values))
    for colour, width in (("black", 3.0), ("white", 1.5)):  # a white ring with a black rim shows on every colour
        axes.scatter(
            [head for _, head in heads],
            [layer for layer, _ in heads],
            s=90,
            facecolors="none",
            edgecolors=colour,
            linewidths=width,
        )
    axes.set(xlabel="head", ylabel="layer", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.colorbar(image, ax=axes)
    return figure


def plot_ranking(ranking: Ranking) -> Any:
    """The scores of a ranking as bars, best at the top: blue above zero, orange below.

    The label of a bar is the passage's title, else its id, else the beginning of its text.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    figure = new_figure(8, 0.3 * len(ranking) + 1)
    axes = figure.subplots()
    scores = [ranked.score for ranked in ranking]
    rows = range(len(ranking))
    bars = axes.barh(rows, scores, color=[_hexadecimal(colour_of(score)) for score in scores])
    axes.bar_label(bars, [f"{score:.4f}" for score in scores], padding=3, fontsize="small")
    # A dollar sign in a text does not start a formula.
    axes.set_yticks(rows, [_name(ranked) for ranked in ranking], parse_math=False)
    axes.set(xlabel="score", ylim=(len(ranking) - 0.4, -0.6))
    axes.set_title(_first_line(ranking.query, 2 * _LABEL_LENGTH), parse_math=False)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.margins(x=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, which notebooks can show."""
    figure = require_extra("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")
    # Notebooks call this where pyplot is not set up to show figures.
    figure._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _scale(values: Tensor) -> dict[str, Any]:
    """Colours for a map: from orange through white at zero to blue where there are negative values."""
    if not values.min() < 0:
        return {"cmap": "viridis"}
    colours = require_extra("matplotlib.colors", "plot")
    largest = values.abs().max().item()
    ends = [_hexadecimal(AGAINST), "white", _hexadecimal(FOR)]
    return {"cmap": colours.LinearSegmentedColormap.from_list("signed", ends), "vmin": -largest, "vmax": largest}


def _hexadecimal(colour: RGB) -> str:
    return f"#{bytes(colour).hex()}"


def _name(ranked: RankedPassage) -> str:
    passage = ranked.passage
    return _first_line(passage.title or passage.id or passage.text, _LABEL_LENGTH) or f"document {ranked.index}"


def _first_line(text: str, length: int) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(printable(text[: 4 * length]).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
