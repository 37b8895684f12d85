"""The detection set that comes with the package: passages on 42 subjects in six languages, and questions on them.

All texts are the project's own. The passages of one subject share their words, so that they are hard to tell apart.
"""

import json
import random
from importlib import resources
from typing import Any

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample


def load_encyclopedia(candidates: int = 20, seed: int = 0, every: int = 1) -> list[LabelledExample]:
    """Every question with the passages of its subject, and others of its language up to `candidates`, shuffled.

    Args:
        candidates: passages of a list, at most; all those of its subject are in it.
        seed: of draws.
        every: 2 keeps the second, fourth … subject of each language, with its questions and passages alone.

    >>> example = load_encyclopedia()[0]
    >>> len(example.documents), example.query
    (20, 'Whose spouse relayed orders to the workers after illness kept the chief engineer at home?')
    >>> example.metadata
    {'language': 'en'}
    """
    all_entries, examples = _read("encyclopedia"), []
    kept = _subjects(all_entries, every)
    entries = [entry for entry in all_entries if entry["group"] in kept]
    for question in _read("encyclopedia_questions"):
        draw = random.Random(f"{seed} {question['id']}")
        first = next((entry for entry in entries if entry["id"] == question["relevant"][0]), None)
        if first is None:
            continue
        near = [entry for entry in entries if entry["group"] == first["group"]]
        others = [e for e in entries if e["language"] == first["language"] and e["group"] != first["group"]]
        listed = [*near, *draw.sample(others, min(len(others), max(0, candidates - len(near))))]
        draw.shuffle(listed)
        examples.append(
            LabelledExample(
                query=question["query"],
                documents=tuple(Passage(text=e["text"], title=e["title"], id=e["id"]) for e in listed),
                relevant=tuple(index for index, e in enumerate(listed) if e["id"] in question["relevant"]),
                id=question["id"],
                metadata={"language": first["language"]},
            )
        )
    return examples


def _subjects(entries: list[dict[str, Any]], every: int) -> set[str]:
    by_language: dict[str, list[str]] = {}
    for entry in entries:
        subjects = by_language.setdefault(entry["language"], [])
        if entry["group"] not in subjects:
            subjects.append(entry["group"])
    return {subject for subjects in by_language.values() for subject in subjects[every - 1 :: every]}


def _read(name: str) -> list[dict[str, Any]]:
    text = resources.files("qrhead_rag").joinpath(f"data/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
