"""Sentence splitters side by side, on what they get wrong: `sentencex`, which the library uses, and pysbd.

    pip install --no-deps --target PARTS pysbd==0.3.4
    PYTHONPATH=$PWD:PARTS python -m benchmarks.splitters

Prints, for each kind of text, how many texts are cut into the right number of sentences, and each that is not.
"""

import time
from collections.abc import Callable

import pysbd

from qrhead_rag.core.sentences import sentence_spans

CASES: dict[str, list[tuple[str, int]]] = {  # each with its number of sentences; an item or a line of a list is one
    "abbreviations": [
        ("Dr. Ash met Mr. Lee at 5 p.m. on Monday. They left.", 2),
        ("The U.S. ferry sank. It was old.", 2),
        ("See fig. 3, p. 12, e.g. the mast. It broke.", 2),
        ("Acme Inc. bought Foo Ltd. in May. Prices rose.", 2),
        ("He lives on St. John St. in Utah. He sings.", 2),
        ("J. R. R. Ash wrote it. It sold.", 2),
    ],
    "decimals": [
        ("It rose 3.5 km. It fell 1.200,5 m.", 2),
        ("Version 2.0.1 is out. It works.", 2),
        ("It costs $4.99. Buy it.", 2),
        ("Pi is 3.14. e is 2.72.", 2),
    ],
    "CJK": [
        ("渡轮九点开。面包在黎明烤好。你好吗？", 3),
        ("彼は「行く。」と言った。雨が降った。", 2),
        ("版本2.0发布了。很好！", 2),
    ],
    "lists": [("Needs:\n- a rope\n- a mast\n\nThen sail. Come back.", 5), ("1. Buy bread.\n2. Bake it.\n3. Eat.", 3)],
    "tables": [
        ("| ship | year |\n| --- | --- |\n| Ash | 1912. |\n| Oak | 1920 |\n\nBoth sank. Nobody knows why.", 3),
        ("| ship | year |\n| --- | --- |\n| Ash | 1912 |\n| Oak | 1920 |\n\nBoth sank. Nobody knows why.", 3),
    ],
    "code": [
        ("Call x.y.z() first. Then run `a.b`.\n\ndef f(x):\n    return x.y", 3),
        ("Open http://a.b/c.d?e=f. Then close it.", 2),
        ("Edit config.yaml. Run make.", 2),
    ],
    "quotes": [('"It sank." said Ash. He left.', 2), ('He said "Stop!" and left. She stayed.', 2)],
}
LONG = "The ferry leaves at nine. Bread is baked at dawn, e.g. by Dr. Ash. " * 300


def main() -> None:
    segmenter = pysbd.Segmenter(language="en", clean=False)
    splitters: dict[str, Callable[[str], list[str]]] = {
        "sentencex": lambda text: [text[start:end] for start, end in sentence_spans(text)],
        "pysbd": segmenter.segment,
    }
    wrong = []
    print("| | " + " | ".join(splitters) + " |")
    print("| --- |" + " --- |" * len(splitters))
    for kind, cases in CASES.items():
        cells = []
        for name, split in splitters.items():
            parts = [[part for part in split(text) if part.strip()] for text, _ in cases]
            right = [len(of_text) == number for of_text, (_, number) in zip(parts, cases, strict=True)]
            wrong += [(kind, name, of_text) for of_text, good in zip(parts, right, strict=True) if not good]
            cells.append(f"{sum(right)} of {len(cases)}")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    for name, split in splitters.items():
        start = time.perf_counter()
        joined = "".join(split(LONG))
        seconds = time.perf_counter() - start
        print(f"{name}: {seconds:.2f} s for {len(LONG)} characters, {'all' if joined == LONG else 'not all'} covered")
    for kind, name, parts in wrong:
        print(kind, name, parts)


if __name__ == "__main__":
    main()
