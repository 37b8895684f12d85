"""Other rerankers beside the heads, as `qrhead evaluate` takes them: functions of a query and texts that give scores.

    qrhead evaluate DATA --methods bm25,default,benchmarks.rerankers:rank_gpt,benchmarks.rerankers:cross_encoder

`rank_gpt` asks a chat model to write the order down (RankGPT, Sun et al., arXiv 2304.09542), in windows of 20 moved by
10 as published; `cross_encoder` scores each pair of query and text by a classifier. The models are named below, or in
the environment.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qrhead_rag.evaluate.writer import Writer
from qrhead_rag.ranking.windows import slide

RANK_GPT = os.environ.get("RANK_GPT")  # None is the embedded model
CROSS_ENCODER = os.environ.get("CROSS_ENCODER", "cross-encoder/ms-marco-MiniLM-L6-v2")

ASK = (
    "Rank the {count} passages above by how well they answer the query.\n\nQuery: {query}\n\n"
    "Answer with their numbers alone, the best first, like [2] > [1]."
)


def rank_gpt(query: str, texts: Sequence[str]) -> list[float]:
    """Minus the place at which the model puts each text; what it leaves out stays behind, in the order given."""

    def best_first(indices: list[int]) -> list[int]:
        listing = "\n\n".join(f"[{number}] {texts[index]}" for number, index in enumerate(indices, start=1))
        answer = writer().answer(listing, ASK.format(count=len(indices), query=query)).text
        named = dict.fromkeys(int(number) for number in re.findall(r"\[(\d+)\]", answer))
        chosen = [indices[number - 1] for number in named if 1 <= number <= len(indices)]
        return chosen + [index for index in indices if index not in chosen]

    order = slide(len(texts), 20, 10, best_first)
    return [-float(order.index(index)) for index in range(len(texts))]


@torch.inference_mode()
def cross_encoder(query: str, texts: Sequence[str]) -> list[float]:
    """The classifier's first logit for each pair."""
    tokenizer, model = classifier()
    pairs = tokenizer([query] * len(texts), list(texts), padding=True, truncation=True, return_tensors="pt")
    scores: list[float] = model(**pairs).logits[:, 0].tolist()
    return scores


@cache
def writer() -> Writer:
    """The chat model, loaded at first use."""
    return Writer.from_pretrained(RANK_GPT, max_new_tokens=120)


@cache
def classifier() -> tuple[Any, Any]:
    """Tokenizer and classifier, loaded at first use."""
    model = AutoModelForSequenceClassification.from_pretrained(CROSS_ENCODER)
    return AutoTokenizer.from_pretrained(CROSS_ENCODER), model.eval()
