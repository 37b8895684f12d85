"""Retrieval heads of Wu et al. (ICLR 2025, arXiv 2404.15574), for comparison: heads that copy.

A needle is inserted into a haystack and the model is asked for it. A head copies a token when the token with most of
its attention is the one being generated and belongs to the answer inside the needle. Its score is the share of the
answer's tokens that it copies, averaged over the runs in which the model retrieves the needle. Needles and haystack are
this project's own.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from qrhead_rag.core.attention import HeadReader, Rows
from qrhead_rag.core.prompt import Span
from qrhead_rag.evaluate.writer import Writer

LENGTHS = (500, 1000)
DEPTHS = (0.2, 0.5, 0.8)
RETRIEVED_SHARE = 0.5
"""Share of the answer's tokens that must be generated for a run to count, as in the published code."""


class Needle(NamedTuple):
    """A sentence that does not belong to the haystack, a question about it, and the words of it that answer.

    >>> load_needles()[0].answer in load_needles()[0].needle
    True
    """

    needle: str
    question: str
    answer: str


class CopyingScores(NamedTuple):
    """The copying score of every head.

    Attributes:
        scores: row layer * num_heads + head; zeros if no needle was retrieved. Shape: (heads,)
        num_found: runs in which the model retrieved the needle.
        num_runs: all runs.

    >>> CopyingScores(torch.zeros(4), num_found=0, num_runs=20).num_runs
    20
    """

    scores: Tensor
    num_found: int
    num_runs: int


def load_needles() -> list[Needle]:
    """The needles that come with the package."""
    text = resources.files("qrhead_rag").joinpath("data/needles.jsonl").read_text(encoding="utf-8")
    return [Needle(**json.loads(line)) for line in text.splitlines()]


def load_haystack() -> str:
    """The haystack that comes with the package: about 2,900 tokens of small observations."""
    return resources.files("qrhead_rag").joinpath("data/haystack.txt").read_text(encoding="utf-8")


def copying_scores(
    writer: Writer,
    *,
    needles: Sequence[Needle] | None = None,
    haystack: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    on_progress: Callable[[int, int], None] | None = None,
) -> CopyingScores:
    """The copying score of every head, from one run for each needle and length, over alternating depths.

    Args:
        writer: the whole model.
        needles: the package's where None.
        haystack: the package's where None.
        lengths: tokens of haystack around the needle.
        depths: of the needle in the haystack, from 0 (its beginning) to 1.
        on_progress: called with the number of runs done and the total.

    Raises:
        ValueError: an answer that is not part of its needle.
    """
    needles = load_needles() if needles is None else needles
    haystack = load_haystack() if haystack is None else haystack
    config = writer.model.config.get_text_config()
    every = [(layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)]
    reader = HeadReader(writer.model, every)
    runs = [(needle, length) for needle in needles for length in lengths]
    shares = []
    for done, ((needle, length), depth) in enumerate(zip(runs, cycle(depths), strict=False)):
        if on_progress:
            on_progress(done, len(runs))
        prompt = writer.render(f"{insert_needle(needle, writer, haystack, length, depth)}\n\n{needle.question}")
        ids, span = _locate(prompt, needle, writer)
        generated = writer.generate(ids)
        answer = ids[span.start : span.end]
        if len(set(answer) & set(generated)) >= RETRIEVED_SHARE * len(set(answer)):
            shares.append(copied_share(reader, ids, generated, span))
    if on_progress:
        on_progress(len(runs), len(runs))
    scores = torch.stack(shares).mean(dim=0) if shares else torch.zeros(len(every))
    return CopyingScores(scores, len(shares), len(runs))


def insert_needle(needle: Needle, writer: Writer, haystack: str, length: int, depth: float) -> str:
    """The first `length` tokens of the haystack with the needle between two of its sentences."""
    offsets = writer.tokenizer(haystack, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    text = haystack[: offsets[min(length, len(offsets)) - 1][1]]
    ends = [0, *(match.end() for match in re.finditer(r"[.!?]\s+", text))]
    offset = ends[min(bisect_left(ends, depth * len(text)), len(ends) - 1)]
    return f"{text[:offset]}{needle.needle} {text[offset:]}"


def copied_share(reader: HeadReader, ids: Sequence[int], generated: Sequence[int], span: Span) -> Tensor:
    """Of the tokens in a span, the share that each head copies while the model generates.

    Args:
        reader: of every head.
        ids: of the prompt.
        generated: ids that the model generated after it.
        span: tokens to copy.

    Returns:
        Shape: (heads,)
    """
    sequence = [*ids, *generated]
    cache = reader.prefill(torch.tensor([ids[:-1]]))
    copied: Tensor | None = None  # (heads, tokens in the span)
    for step, token in enumerate(generated):
        last = len(ids) - 1 + step
        attention = reader.read(cache, [Rows([sequence[last]], position=last)])[:, 0]  # (heads, tokens before the last)
        most = attention.max(dim=-1)
        itself = 1 - attention.sum(dim=-1)  # the rest goes to the last token itself
        source = most.indices.where(most.values > itself, last)  # (heads,)
        if copied is None:
            copied = torch.zeros(len(source), span.end - span.start, dtype=torch.bool)
        for target in range(span.start, span.end):
            if sequence[target] == token:
                copied[:, target - span.start] |= source.cpu() == target
        reader.prefill(torch.tensor([[sequence[last]]]), cache)
    if copied is None:
        raise ValueError("nothing was generated; expected at least one token")
    return copied.float().mean(dim=-1)


def _locate(prompt: str, needle: Needle, writer: Writer) -> tuple[list[int], Span]:
    """Token ids of the prompt, and the span of the answer inside the needle."""
    start = prompt.find(needle.needle)
    inside = needle.needle.find(needle.answer)
    if start < 0 or inside < 0:
        raise ValueError(f"the answer {needle.answer!r} is not part of the needle {needle.needle!r}")
    start, end = start + inside, start + inside + len(needle.answer)
    encoded = writer.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    tokens = [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
    return encoded["input_ids"], Span(tokens[0], tokens[-1] + 1)
