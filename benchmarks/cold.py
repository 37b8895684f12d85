"""What one ranking costs when nothing is cached, as ratios from one run on this machine.

1. `rank` against one plain forward pass of the same tokens: every layer, sdpa, no logits.
2. The published procedure done plainly against `rank`: every layer and head under eager attention, null query first,
   then the query on the same keys and values. Both give the same scores, which is checked.
3. Peak memory of a ranking of 8,000 tokens, over the loaded model, against the keys and values of the layers that run.

Times are medians of interleaved runs. Model: the embedded one with its four heads, float32; texts: the handbook.

    python -m benchmarks.cold
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib import resources
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from benchmarks.warm import HEADS
from qrhead_rag import Passage, QRRetriever
from qrhead_rag.core.model_view import cache_argument, crop
from qrhead_rag.core.prompt import NULL_QUERY, Prompt
from qrhead_rag.core.scoring import calibrate, document_of_tokens, document_scores, masked
from qrhead_rag.ranking.store import store_of

QUERY = "Where do I sleep when the crossing is called off, and who pays for it?"


def handbook(retriever: QRRetriever, tokens: int) -> list[Passage]:
    """Passages of the handbook, from the beginning again when it ends, with the query at most `tokens` long."""
    lines = resources.files("qrhead_rag").joinpath("data/handbook.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    passages: list[Passage] = []
    for entry in cycle(entries):
        longer = [*passages, Passage(text=entry["text"], title=entry["title"], id=entry["id"])]
        if len(prompt_of(retriever, longer).ids) > tokens:
            return passages
        passages = longer
    raise AssertionError("unreachable")


def prompt_of(retriever: QRRetriever, passages: list[Passage], query: str = QUERY) -> Prompt:
    context = store_of(retriever).context
    return context.tokenizer.prompt(context.template, [passage.content for passage in passages], query)


@torch.no_grad()
def plain_forward(model: torch.nn.Module, ids: list[int]) -> Tensor:
    hidden: Tensor = model(torch.tensor([ids]), use_cache=False).last_hidden_state
    return hidden


@torch.no_grad()
def published(model: PreTrainedModel, prompt: Prompt, null: Prompt) -> Tensor:
    """c(t) of every head, by the model's own `output_attentions`. Shape: (layers, heads, tokens)"""
    start, cache, attention, name = prompt.query_start, DynamicCache(), [], cache_argument(model)
    for ids, skipped in ((null.ids, 0), (prompt.ids, start)):
        output = model(torch.tensor([ids[skipped:]]), use_cache=True, output_attentions=True, **{name: cache})
        rows = slice(start - skipped, None)
        attention.append(torch.cat([layer[:, :, rows, :start].mean(dim=2) for layer in output.attentions]))
        crop(cache, start)
    return calibrate(attention[1], attention[0])


def timed(runs: int, **sides) -> dict[str, float]:
    """Median seconds of each side, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            if run:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def compare_times(tokens: int, runs: int, slow_runs: int) -> None:
    whole = QRRetriever.from_pretrained(heads="all", mode="listwise", device="cpu", cache_bytes=0)
    model = whole.model
    retriever = QRRetriever(
        model, whole.tokenizer, heads=HEADS, mode="listwise", model_name=whole.model_name, cache_bytes=0
    )
    passages = handbook(retriever, tokens)
    prompt, null = prompt_of(retriever, passages), prompt_of(retriever, passages, NULL_QUERY)
    print(f"{len(passages)} passages, {len(prompt.ids)} tokens, {torch.get_num_threads()} threads, heads {HEADS}")

    sides = {
        "rank": lambda: retriever.rank(QUERY, passages),
        "forward": lambda: plain_forward(model, prompt.ids),
    }
    assert model.config._attn_implementation == "sdpa"
    median = timed(runs, **sides)
    print(f"rank, cold                        {median['rank']:7.2f} s   median of {runs}")
    print(f"one plain forward, sdpa           {median['forward']:7.2f} s   median of {runs}")
    print(f"  rank / forward                  {median['rank'] / median['forward']:7.2f}     wanted: at most 0.70")

    def slow() -> Tensor:
        model.set_attn_implementation("eager")
        try:
            return published(model, prompt, null)
        finally:
            model.set_attn_implementation("sdpa")

    calibrated = torch.stack([slow()[layer, head] for layer, head in HEADS]).sum(dim=0)
    document_of = document_of_tokens(prompt.documents, prompt.query_start)
    wanted = document_scores(masked(calibrated, document_of, len(passages)), document_of, len(passages))
    apart = (torch.tensor(retriever.score(QUERY, passages)) - wanted).abs().max().item()
    median = timed(slow_runs, rank=sides["rank"], published=slow)
    print(f"rank, cold                        {median['rank']:7.2f} s   median of {slow_runs}")
    print(f"published procedure, eager        {median['published']:7.2f} s   median of {slow_runs}")
    print(f"  published / rank                {median['published'] / median['rank']:7.2f}     wanted: at least 8")
    print(f"  scores of the two differ by at most {apart:.1e}")


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure_memory(tokens: int) -> None:
    """In a process of its own, so that nothing else has used memory before."""
    retriever = QRRetriever.from_pretrained(heads=HEADS, mode="listwise", device="cpu", cache_bytes=0)
    retriever.rank(QUERY, ["Everything is touched once before it is measured.", "A short list does that."])
    passages = handbook(retriever, tokens)
    length = len(prompt_of(retriever, passages).ids)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory("VmRSS")
    retriever.rank(QUERY, passages)
    used = memory("VmHWM") - before
    config = retriever.model.config
    size = retriever.model.dtype.itemsize
    kept = 2 * retriever.model.config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size * length
    print(f"{length} tokens, {config.num_hidden_layers} layers in memory")
    print(f"peak over the loaded model        {used / 2**20:7.0f} MB")
    print(f"keys and values of these layers   {kept / 2**20:7.0f} MB")
    print(f"  peak / keys and values          {used / kept:7.2f}")
    print(f"  peak - keys and values          {(used - kept) / 2**20:7.0f} MB  wanted: at most 400")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slow-runs", type=int, default=3)
    parser.add_argument("--memory-tokens", type=int, default=8_000)
    parser.add_argument("--only", choices=["times", "memory"])
    options = parser.parse_args()
    if options.only != "memory":
        compare_times(options.tokens, options.runs, options.slow_runs)
    if options.only == "memory":
        measure_memory(options.memory_tokens)
    elif options.only is None and sys.platform == "linux":
        arguments = ["--only", "memory", "--memory-tokens", str(options.memory_tokens)]
        subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
