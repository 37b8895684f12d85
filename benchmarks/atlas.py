"""An atlas of heads: which heads the sets of each model name, how deep they lie, and how alike the sets are.

    python -m benchmarks.atlas docs/pages/atlas [MORE.json ...]

Writes a picture for each model and prints the tables of the page. Further head sets (those that `find_heads` or `qrhead
detect` wrote) are added to their model's.
"""

import argparse
import statistics
from itertools import combinations
from pathlib import Path

import torch

from qrhead_rag.core.heads import HeadSet, shipped_head_sets
from qrhead_rag.detect.choosing import overlap
from qrhead_rag.show.plot import plot_heads


def label(heads: HeadSet) -> str:
    return f"{heads.name} ({heads.mode})"


def depth(heads: HeadSet) -> str:
    shares = [(layer + 1) / heads.num_layers for layer, _ in heads.heads]
    return f"{min(shares):.0%} to {max(shares):.0%}, median {statistics.median(shares):.0%}"


def named_by(sets: list[HeadSet]) -> torch.Tensor:
    """How many sets name each head. Shape: (layers, heads)"""
    counts = torch.zeros(sets[0].shape)
    for heads in sets:
        for layer, head in heads.heads:
            counts[layer, head] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("more", type=Path, nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    by_model: dict[str, list[HeadSet]] = {}
    for heads in [*shipped_head_sets(), *map(HeadSet.load, options.more)]:
        by_model.setdefault(heads.model, []).append(heads)
    print("| model | layers × heads | set | heads | depth of its heads |\n| --- | --- | --- | --- | --- |")
    for model, sets in sorted(by_model.items()):
        for heads in sets:
            size = " × ".join(map(str, heads.shape))
            print(f"| {model} | {size} | {label(heads)} | {len(heads.heads)} | {depth(heads)} |")
    print("\n| model | sets | heads of the smaller set that the other has | by chance |\n| --- | --- | --- | --- |")
    for model, sets in sorted(by_model.items()):
        whole = [heads for heads in sets if heads.name != "shallow"]
        for first, second in combinations(sorted(whole, key=lambda heads: len(heads.heads)), 2):
            shared, chance = (
                overlap(first.heads, second.heads),
                len(second.heads) / (second.num_layers * second.num_heads),
            )
            print(f"| {model} | {label(first)}, {label(second)} | {shared:.0%} | {chance:.0%} |")
    for model, sets in sorted(by_model.items()):
        name = model.rpartition("/")[2].lower()
        figure = plot_heads(named_by(sets), title=f"{model}: sets that name a head")
        figure.savefig(options.out / f"{name}.png", dpi=60)
        print(f"\n![{model}](atlas/{name}.png)")


if __name__ == "__main__":
    main()
