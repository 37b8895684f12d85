"""What a small cross-encoder costs: six layers of 384, in torch float32, and in ONNX Runtime with weights of int8.

    pip install onnx onnxruntime
    python -m benchmarks.cross_encoder [--pairs 100] [--query-tokens 12] [--passage-tokens 90] [--runs 7]

The model is as large as `cross-encoder/ms-marco-MiniLM-L6-v2`, with random weights: its time does not depend on what
it has learned. Pairs are token ids already: neither side pays for a tokenizer. A batch has pairs of like length.
Both sides score the same pairs in turn, and the ratio is of their medians.
"""

import argparse
import logging
import random
import statistics
import tempfile
import time
import warnings
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

CONFIG = BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    num_labels=1,
)
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def require(name: str) -> Any:
    """A package that only ONNX needs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install it with: pip install onnx onnxruntime") from error


class Logit(nn.Module):
    """A classifier's first logit. Shape: (pairs, tokens), three times, to (pairs,)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**inputs).logits[:, 0]


class CrossEncoder:
    """A cross-encoder with random weights, and pairs of a query and passages for it to score.

    Args:
        pairs: of one query, each with a passage.
        query_tokens: of the query.
        passage_tokens: of a passage, on average; they vary by a fifth.
        batch: pairs of a forward pass.
    """

    def __init__(self, pairs: int = 100, query_tokens: int = 12, passage_tokens: int = 90, batch: int = 32) -> None:
        generator = random.Random(0)
        torch.manual_seed(0)
        self.model = BertForSequenceClassification._from_config(CONFIG, attn_implementation="sdpa").eval()
        spread = passage_tokens // 5
        passages = [generator.randint(passage_tokens - spread, passage_tokens + spread) for _ in range(pairs)]
        passages.sort(reverse=True)
        self.batches = [pad_pairs(query_tokens, passages[start : start + batch]) for start in range(0, pairs, batch)]

    @torch.inference_mode()
    def scores_torch(self) -> list[float]:
        """Each pair's score in float32."""
        scores = [self.model(**inputs).logits[:, 0] for inputs in self.batches]
        return torch.cat(scores).tolist()

    def scores_onnx_int8(self) -> list[float]:
        """Each pair's score by ONNX Runtime, with weights of int8."""
        return [score for inputs in self._arrays for score in self._session.run(None, inputs)[0].tolist()]

    def seconds_torch(self) -> float:
        """Seconds for all pairs in float32."""
        return seconds(self.scores_torch)

    def seconds_onnx_int8(self) -> float:
        """Seconds for all pairs by ONNX Runtime, with weights of int8.

        Raises:
            ImportError: `onnx` or `onnxruntime` is missing.
        """
        assert self._session
        return seconds(self.scores_onnx_int8)

    @cached_property
    def _arrays(self) -> list[dict[str, Any]]:
        return [{name: inputs[name].numpy() for name in INPUTS} for inputs in self.batches]

    @cached_property
    def _session(self) -> Any:
        """The model exported, its weights quantized, as many threads as torch has."""
        require("onnx")
        runtime, quantization = require("onnxruntime"), require("onnxruntime.quantization")
        preparation = require("onnxruntime.quantization.shape_inference")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported, prepared, quantized = (Path(folder) / name for name in ("full.onnx", "ready.onnx", "int8.onnx"))
            torch.onnx.export(
                Logit(self.model).eval(),
                tuple(self.batches[-1][name] for name in INPUTS),
                str(exported),
                input_names=INPUTS,
                output_names=["scores"],
                dynamic_axes={name: {0: "pairs", 1: "tokens"} for name in INPUTS} | {"scores": {0: "pairs"}},
                dynamo=False,  # the other exporter needs a third package
            )
            preparation.quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
            logging.getLogger().setLevel(logging.ERROR)
            quantization.quantize_dynamic(prepared, quantized, weight_type=quantization.QuantType.QInt8)
            return runtime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])


def pad_pairs(query_tokens: int, passages: list[int]) -> dict[str, Tensor]:
    """Random ids of pairs, as a tokenizer lays them out: [CLS] query [SEP] passage [SEP]. Shape: (pairs, tokens)."""
    lengths = torch.tensor(passages)[:, None] + query_tokens + 3
    positions = torch.arange(int(lengths.max()))[None]
    mask = (positions < lengths).long()
    ids = torch.randint(1000, CONFIG.vocab_size, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (positions >= query_tokens + 2).long() * mask}


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--query-tokens", type=int, default=12)
    parser.add_argument("--passage-tokens", type=int, default=90)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    model = CrossEncoder(options.pairs, options.query_tokens, options.passage_tokens)
    full, quantized = torch.tensor(model.scores_torch()), torch.tensor(model.scores_onnx_int8())
    runs = [(model.seconds_torch(), model.seconds_onnx_int8()) for _ in range(options.runs)]
    plain, int8 = (statistics.median(times) * 1e3 for times in zip(*runs, strict=True))
    print(f"{options.pairs} pairs, {torch.get_num_threads()} threads")
    print(f"torch float32: {plain:.0f} ms; ONNX Runtime int8: {int8:.0f} ms; {plain / int8:.2f} times faster")
    print(f"largest difference of scores {(full - quantized).abs().max():.4f}, of a spread of {full.std():.4f}")


if __name__ == "__main__":
    main()
