"""Pictures: the numbers on them are those that were given, and foreign text cannot break them."""

import io
import subprocess
import sys

import pytest
import torch
from matplotlib.colors import to_hex

from qrhead_rag import Passage, RankedPassage, Ranking
from qrhead_rag.show.ink import AGAINST, FOR
from qrhead_rag.show.plot import plot_heads, plot_ranking

BLUE, ORANGE = ("#" + bytes(colour).hex() for colour in (FOR, AGAINST))


def image(figure):
    return figure.axes[0].images[0]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=50)
    return buffer.getvalue()


def ranking(*passages, query="Who counts the ships?"):
    return Ranking(
        query, tuple(RankedPassage(n, score, passage) for n, (score, passage) in enumerate(passages)), "late"
    )


@pytest.mark.parametrize("kind", [torch.tensor, list, tuple, lambda rows: torch.tensor(rows, dtype=torch.bfloat16)])
@pytest.mark.slow
def test_a_map_shows_the_scores_and_rings_the_heads(kind):
    scores = [[0.0, 0.25, 0.5], [1.0, 0.0, 0.75]]
    figure = plot_heads(kind(scores), heads=[(1, 0), (0, 2)], title="mass")
    axes = figure.axes[0]
    assert image(figure).get_array().tolist() == scores
    assert image(figure).origin == "lower"
    for ring in axes.collections:
        assert ring.get_offsets().tolist() == [[0, 1], [2, 0]]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("head", "layer", "mass")
    assert png(figure).startswith(b"\x89PNG")


def test_negative_scores_are_orange_and_zero_is_white():
    drawn = image(plot_heads([[-0.5, 0.0, 1.0]]))
    colours = [to_hex(drawn.cmap(drawn.norm(value))) for value in (-1.0, 0.0, 1.0)]
    assert colours[0] == ORANGE
    assert colours[2] == BLUE
    assert all(level > 250 for level in bytes.fromhex(colours[1][1:]))
    assert image(plot_heads([[0.0, 1.0]])).cmap.name == "viridis"


def test_ticks_are_whole_layers_and_heads():
    for figure in (plot_heads([[0.1]]), plot_heads(torch.rand(30, 9))):
        for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
            assert all(float(tick).is_integer() for tick in axis.get_majorticklocs())


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(layers, heads\)"):
        plot_heads([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        plot_heads([])
    with pytest.raises(ValueError, match="no number for every head of every layer"):
        plot_heads([[0.1, 0.2], [0.3]])
    with pytest.raises(ValueError, match=r"heads \[\(2, 0\), \(0, -1\)\] are not on a map of 2 layers of 2 heads"):
        plot_heads(torch.zeros(2, 2), heads=[(1, 1), (2, 0), (0, -1)])


def test_bars_are_the_scores_from_the_top():
    bars_of = ranking(
        (0.5, Passage(text="counts", title="Log")),
        (0.25, Passage(text="\n a  ship\n" + "x" * 99)),
        (-0.125, Passage(text="lamp", id="n7")),
        (-0.125, Passage(text=" ")),
    )
    axes = plot_ranking(bars_of).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, -0.125, -0.125]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [BLUE, BLUE, ORANGE, ORANGE]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Log",
        "a ship " + "x" * 32 + "…",
        "n7",
        "document 3",
    ]
    assert [label.get_text() for label in axes.texts] == ["0.5000", "0.2500", "-0.1250", "-0.1250"]
    assert axes.yaxis_inverted()
    assert axes.get_title() == "Who counts the ships?"


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", ["$5 and $6_{", r"\frac{$", "a\ud800b\x00\x1b[31m", "👩‍🍳 ثلاثة أرغفة", "x" * 3000])
def test_any_text_can_be_drawn(text):
    figure = plot_ranking(ranking((0.5, Passage(text="t", title=text)), query=text))
    assert png(figure).startswith(b"\x89PNG")
    assert "\x1b" not in figure.axes[0].get_title()


def test_an_empty_ranking_is_an_empty_picture():
    figure = plot_ranking(ranking())
    assert not figure.axes[0].patches
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_notebook_shows_a_figure_and_pyplot_stays_out():
    code = """
import sys
from IPython.core.formatters import DisplayFormatter
from qrhead_rag.show.plot import plot_heads
data, _ = DisplayFormatter().format(plot_heads([[0.1, 0.2]]))
print("image/png" in data, "matplotlib.pyplot" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout == "True False\n", result.stderr


@pytest.mark.parametrize("draw", [lambda: plot_heads([[0.1]]), lambda: plot_ranking(ranking())])
@pytest.mark.slow
def test_a_missing_extra_is_named_with_its_command(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'qrhead-rag\[plot\]'"):
        draw()
