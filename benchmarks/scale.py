"""How encoding grows with the list, and what each mode keeps per token beside the formula.

    python -m benchmarks.scale [--runs 3]

Linear growth is 1.00: seconds per passage of a list over those of the shortest one, medians of runs taken in turn.
"""

import argparse
import statistics
import time

from benchmarks.warm import HEADS, passages
from qrhead_rag import QRRetriever
from qrhead_rag.ranking.store import store_of

SIZES = (25, 100, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    base = QRRetriever.from_pretrained(device="cpu", heads=HEADS)
    config = base.model.config
    layers, key_heads, size = base.heads.max_layer + 1, config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // key_heads
    needed = len({(layer, head // group) for layer, head in HEADS})
    formulas = {
        "listwise": ("layers x 2 x key heads x head size x 4", layers * 2 * key_heads * size * 4),
        "independent": ("layers x 2 x key heads x head size x 4", layers * 2 * key_heads * size * 4),
        "late": ("selected key heads x head size x 2", needed * size * 2),
    }
    for mode, (formula, expected) in formulas.items():
        asked = QRRetriever(
            base.model, base.tokenizer, model_name=base.model_name, heads=HEADS, mode=mode, cache_bytes=0
        )
        encoded = asked.encode(passages(25))
        encoded.rank("What is asked is kept too.")
        tokens = sum(asked.count_tokens(f"[1] {passage}") for passage in passages(25))
        context = store_of(asked).context
        opening = formulas["listwise"][1] * len(context.tokenizer.opening(context.template))
        own = encoded.nbytes - (opening if mode == "listwise" else 0)  # the other modes keep it once a retriever
        print(
            f"{mode}: {own / tokens:.0f} bytes a token; {formula} = {expected}; the prompt's "
            f"opening takes {opening} a list"
        )
        if mode == "listwise":
            continue
        seconds: dict[int, list[float]] = {number: [] for number in SIZES}
        for _ in range(options.runs):
            for number in SIZES:
                documents = passages(number)
                start = time.perf_counter()
                asked.encode(documents)
                seconds[number].append((time.perf_counter() - start) / number)
        per_passage = {number: statistics.median(times) for number, times in seconds.items()}
        for number in SIZES[1:]:
            print(
                f"{mode}, {number} passages: {per_passage[number] * 1e3:.1f} ms a passage; {SIZES[0]} passages: "
                f"{per_passage[SIZES[0]] * 1e3:.1f} ms; {per_passage[number] / per_passage[SIZES[0]]:.2f} times linear "
                "(goal: at most 1.15)"
            )


if __name__ == "__main__":
    main()
