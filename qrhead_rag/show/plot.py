"""Pictures: what every head is worth, a ranking's scores.

Needs the extra `plot`. Figures are made without pyplot, so that no state is shared and no display is asked for; a
notebook shows them all the same.
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
    """What every head is worth, as a map with layers upward.

    Where some values are negative, blue is above zero and orange below; else light is high.

    Args:
        head_scores: a number for every head. # (layers, heads)
        heads: (layer, head) pairs to ring.
        title: stands above the map.

    Returns:
        A matplotlib Figure; `savefig("heads.png")` writes it.

    Raises:
        ValueError: not a number for every head of every layer, or a head to ring that is not on the map.
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
    figure = figure_of(max(4.0, 0.25 * num_heads + 2), max(4.0, 0.2 * num_layers + 1))
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
    """The scores of a ranking as bars, in its order from the top: blue above zero, orange below.

    A bar is named by the title of its passage, else by its id, else by the beginning of its text.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    figure = figure_of(8, 0.3 * len(ranking) + 1)
    axes = figure.subplots()
    scores = [ranked.score for ranked in ranking]
    places = range(len(ranking))
    bars = axes.barh(places, scores, color=[_hexadecimal(colour_of(score)) for score in scores])
    axes.bar_label(bars, [f"{score:.4f}" for score in scores], padding=3, fontsize="small")
    # A dollar sign in a text is no formula.
    axes.set_yticks(places, [_name(ranked) for ranked in ranking], parse_math=False)
    axes.set(xlabel="score", ylim=(len(ranking) - 0.4, -0.6))
    axes.set_title(_shortened(ranking.query, 2 * _LABEL_LENGTH), parse_math=False)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.margins(x=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def figure_of(width: float, height: float) -> Any:
    """An empty figure of this size in inches, which a notebook shows."""
    figure = require_extra("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")
    # A notebook asks an object for this where pyplot has not taught it to show figures.
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
    return _shortened(passage.title or passage.id or passage.text, _LABEL_LENGTH) or f"document {ranked.index}"


def _shortened(text: str, length: int) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(printable(text[: 4 * length]).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
