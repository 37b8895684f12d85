"""What bits of a key are worth under `late`: nDCG@10 with keys in float32, float16, 8 bits and 4.

    python -m benchmarks.key_bits --hotpotqa hotpotqa_100.json --nq nq-open-oracle.jsonl.gz --scifact scifact

Embedded model, its default heads, questions that chose none of them (`--part 2/2`; SciFact: test claims with the 20
abstracts that BM25 ranks first), shuffled. Each list is encoded once in float32; its keys are then rounded as each line
says and asked again. `int8` is `key_dtype="int8"`; the lines below it are simulated: one scale for each key head and
piece, and 4 bits, from -7 to 7. Bytes are those of a token's keys and of its share of the scales, 2 for each.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.second_model import examples_of
from qrhead_rag import LabelledExample, QRRetriever
from qrhead_rag.datasets.load import load_examples, ordered, sample_examples
from qrhead_rag.evaluate.metrics import confidence_interval, ndcg_of_scores, paired_test
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.pieces import PassagePieces, Piece
from qrhead_rag.ranking.quantized import dequantize, quantize


def rounded(keys: Tensor, largest: int, dims: tuple[int, ...]) -> Tensor:
    """Keys rounded to whole numbers up to the largest, with a scale for what the dimensions span."""
    scales = (keys.abs().amax(dim=dims, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return (keys / scales).round() * scales


# Bits of a number, what has a scale, and the rounding. Keys have the shape (key heads, tokens, head size).
STORES: dict[str, tuple[int, str, Callable[[Tensor], Tensor]]] = {
    "float32": (32, "none", lambda keys: keys),
    "float16": (16, "none", lambda keys: keys.half().float()),
    "int8": (8, "dimension", lambda keys: dequantize(*quantize(keys))),
    "int8, a scale for each head": (8, "head", lambda keys: rounded(keys, 127, (1, 2))),
    "int4": (4, "dimension", lambda keys: rounded(keys, 7, (1,))),
    "int4, a scale for each head": (4, "head", lambda keys: rounded(keys, 7, (1, 2))),
}


def with_keys(
    encoded: EncodedPassages, rounding: Callable[[Tensor], Tensor], of: dict[str, PassagePieces], head_size: int
) -> None:
    """Replace the keys of an encoded list by rounded ones of those that it was encoded with."""

    def rounded_piece(piece: Piece) -> Piece:
        (tokens_first,) = piece.keys  # (1, tokens, key heads * head size)
        by_head = rounding(tokens_first[0].unflatten(1, (-1, head_size)).transpose(0, 1))
        return replace(piece, keys=(by_head.transpose(0, 1).flatten(1)[None],))

    encoded._list._passages = {
        text: PassagePieces(tuple(map(rounded_piece, passage.pieces))) for text, passage in of.items()
    }
    encoded._list._baseline = None


def bytes_of_token(passages: list[PassagePieces], bits: int, scales: str, head_size: int) -> float:
    """Bytes of keys and scales for each token."""
    pieces = [piece for passage in passages for piece in passage.pieces]
    tokens = sum(len(piece.offsets) for piece in pieces)
    dimensions = pieces[0].keys[0].shape[2]
    of_piece = {"none": 0, "head": 2 * dimensions // head_size, "dimension": 2 * dimensions}[scales]
    return dimensions * bits / 8 + of_piece * len(pieces) / tokens


def measure(retriever: QRRetriever, eight_bits: QRRetriever, name: str, examples: list[LabelledExample]) -> None:
    config = retriever.model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, list[float]] = {store: [] for store in STORES}
    sizes: dict[str, list[float]] = {store: [] for store in STORES}
    for number, example in enumerate(examples):
        encoded = retriever.encode(example.documents).encode()
        passages = encoded._list._passages
        for store, (bits, scales, rounding) in STORES.items():
            with_keys(encoded, rounding, passages, head_size)
            scores = encoded.score(example.query)
            if store == "int8" and number == 0:  # the simulation is the option
                assert eight_bits.score(example.query, example.documents) == scores
            values[store].append(float(ndcg_of_scores(torch.tensor([scores]), example)))
            sizes[store].append(bytes_of_token(list(passages.values()), bits, scales, head_size))
    print(f"{name}: {len(examples)} lists", flush=True)
    for store, of_lists in values.items():
        interval, against = confidence_interval(of_lists), paired_test(of_lists, values["float16"])
        changed = sum(a != b for a, b in zip(of_lists, values["float16"], strict=True))
        print(
            f"{store:28} {interval.mean:.4f} ({interval.low:.3f} to {interval.high:.3f})  {against.difference:+.4f} "
            f"to float16, p = {against.p_value:.2f}, {changed} lists differ, "
            f"{sum(sizes[store]) / len(examples):6.0f} bytes a token",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hotpotqa", type=Path)
    parser.add_argument("--nq", type=Path)
    parser.add_argument("--scifact", type=Path)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--model", help="by default the embedded one")
    options = parser.parse_args()
    settings = {"mode": "late", "dtype": "float32", "device": "cpu", "cache_bytes": 0}
    retriever = QRRetriever.from_pretrained(options.model, **settings, key_dtype="float32")
    eight_bits = QRRetriever.from_pretrained(options.model, **settings, key_dtype="int8")
    for name, file in {"hotpotqa": options.hotpotqa, "nq": options.nq}.items():
        if file:
            measure(retriever, eight_bits, name, examples_of(file, 2, options.examples))
    if options.scifact:
        claims = load_examples(options.scifact, split="test", candidates=20)
        chosen = sample_examples(claims, count=options.examples, seed=0)
        measure(retriever, eight_bits, "scifact", [ordered(example, "shuffled", 0) for example in chosen])


if __name__ == "__main__":
    main()
