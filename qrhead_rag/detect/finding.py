"""Heads without labels: found on questions that are made from plain passages.

    heads = find_heads(model, tokenizer, passages)
    retriever = QRRetriever(model, tokenizer, heads=heads)

What is found has to rank lists held out better than all heads together, and better than what gives a made list away.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qrhead_rag.core.heads import DEFAULT_READOUTS, HeadSet, Mode, ModelShape, Readout, check_mode, heads_of_layers
from qrhead_rag.core.passage import Document, Passage
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.detect.detection import detect
from qrhead_rag.detect.made import make_examples
from qrhead_rag.detect.recording import Recording, record
from qrhead_rag.detect.report import Detection, DetectionOptions
from qrhead_rag.evaluate.metrics import ndcg_of_scores, parse_metrics
from qrhead_rag.models.loading import share_model
from qrhead_rag.ranking.progress import progress_bar
from qrhead_rag.ranking.retriever import QRRetriever

DEPTH = 2 / 3
"""Share of the layers that heads are looked for in, unless more is asked for: rankings then run no layer above."""
_SAMPLE = 4  # of so many lists one is run under every readout
_WORDS, _WORDS_TELL = "BM25", 0.9
_LEAST_HEADS = 8


_Scorer: TypeAlias = Callable[[str, Sequence[Passage]], Sequence[float]]


class NoHeadsError(ValueError):
    """No heads rank lists held out better than all heads together, or than what gives the lists away.

    >>> raise NoHeadsError("no heads of org/model …")
    Traceback (most recent call last):
    qrhead_rag.detect.finding.NoHeadsError: no heads of org/model …
    """


def find_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Document],
    *,
    mode: Mode = "late",
    readout: Readout | None = None,
    num_heads: int | Literal["auto"] = "auto",
    max_layer: int | None = None,
    questions: int = 40,
    candidates: int = 20,
    seed: int = 0,
    name: str = "found",
    model_name: str | None = None,
    compare: QRRetriever | None = None,
    show_progress: bool = False,
) -> HeadSet:
    """Find the heads of a model on plain passages, without labels.

    Sentences that can stand alone are taken out of their passages and ask for the rest of them (`make_examples`). Heads
    are chosen by nDCG@10 on these lists, and judged on lists held out.

    Args:
        model: a transformers decoder in memory; it is left exactly as found.
        tokenizer: its tokenizer.
        passages: str, Passage or mapping (text, title, id, metadata): some hundreds, of three sentences or more each.
        mode: the mode that the heads will be read under.
        readout: how attention becomes scores; None is that of the mode.
        num_heads: how many; "auto" takes as few as rank lists held out as well as the best number, and 8 at least.
        max_layer: the deepest layer to look in, from 0; None stops at two thirds of the layers.
        questions: lists to make.
        candidates: passages of each.
        seed: of draws.
        name: of the head set.
        model_name: name of the model where it knows none of itself.
        compare: a retriever that ranks the same lists, for the note to say what is gained over its heads.
        show_progress: whether a bar shows the lists that have been run.

    Returns:
        The heads, with a note of what they are worth and three of the questions.

    Raises:
        NoHeadsError: no heads that are worth more than all of them together.
        ValueError: too few passages to make questions, or an option out of range.
        ImportError: the extra `eval` is not installed.
    """
    parse_metrics(["nDCG@10"])  # fails here, not after the recording, if the extra is missing
    check_mode(mode)
    examples = make_examples(passages, questions, candidates, seed)
    loaded = share_model(model, tokenizer, [(0, 0)], mode, model_name)
    layers = layers_to_search(loaded.shape, max_layer, model.config.get_text_config().num_hidden_layers)
    retriever = QRRetriever(
        model, tokenizer, heads=heads_of_layers(layers, loaded.shape), mode=mode, model_name=loaded.name
    )
    options = DetectionOptions(criterion="ndcg", num_heads=num_heads, seed=seed)
    detection = best_detection(
        retriever, {"made": examples}, [readout or DEFAULT_READOUTS[mode]], options, show_progress
    )
    worth = check_worth(detection, controls(examples))
    if compare is not None:
        worth += f", heads {compare.heads.name!r} {_mean_ndcg(compare.score, examples):.3f}"
    samples = "; ".join(repr(example.query) for example in examples[:3])
    note = f"{worth}, on {len(examples)} questions made from {len(passages)} passages, such as {samples}"
    return detection.head_set(name, note=note)


def layers_to_search(shape: ModelShape, max_layer: int | None, in_memory: int) -> int:
    """How many of a model's first layers heads are looked for in.

    Raises:
        ValueError: `max_layer` is no layer in memory.

    >>> layers_to_search(ModelShape("llama", 30, 9), None, in_memory=30)
    20
    """
    if max_layer is None:
        return min(in_memory, ceil(DEPTH * shape.num_layers))
    if not 0 <= max_layer < in_memory:
        raise ValueError(f"max_layer={max_layer}: expected 0 to {in_memory - 1}, the layers of the model in memory")
    return max_layer + 1


def best_detection(
    retriever: QRRetriever,
    examples: Mapping[str, Sequence[LabelledExample]],
    readouts: Sequence[Readout],
    options: DetectionOptions,
    show_progress: bool = False,
) -> Detection:
    """Detect under the first readout, unless another is better on every fourth list by more than the standard error.

    Args:
        retriever: reads every head of its layers.
        examples: lists by name of their set; the sets count alike.
        readouts: to try, the preferred one first. Passages that the mode encodes alone are encoded once for all.
        options: of the choice, as `detect_enough` takes them.
        show_progress: whether a bar shows the lists that have been run.
    """
    if retriever.mode == "late":  # which keeps little of each: all at once, so that batches are full
        retriever.encode(_passages_of(examples), show_progress=show_progress)
    sample = {name: listed[::_SAMPLE] for name, listed in examples.items()}
    total = sum(map(len, examples.values())) + 2 * (len(readouts) - 1) * sum(map(len, sample.values()))
    with TemporaryDirectory() as folder, progress_bar(total, "finding heads", "list", show_progress) as advance:

        def detection_on(lists: Mapping[str, Sequence[LabelledExample]], readout: Readout) -> Detection:
            reader = retriever.with_readout(readout)
            recordings = {
                name: record(reader, listed, Path(folder), on_progress=_steps(advance))
                for name, listed in lists.items()
            }
            return detect_enough(recordings, reader.model_name, reader.shape, reader.mode, options, readout=readout)

        best = readouts[0]
        for other in readouts[1:]:
            before, after = (detection_on(sample, readout).quality[options.criterion] for readout in (best, other))
            if after.mean > before.mean + before.error:
                best = other
        return detection_on(examples, best)


def _passages_of(examples: Mapping[str, Sequence[LabelledExample]]) -> list[Passage]:
    return [passage for listed in examples.values() for example in listed for passage in example.documents]


def detect_enough(
    recordings: Mapping[str, Recording],
    model: str,
    shape: ModelShape,
    mode: Mode,
    options: DetectionOptions,
    *,
    readout: Readout,
    copying: Tensor | None = None,
) -> Detection:
    """As `detect`, but num_heads="auto" takes 8 heads at least, or a quarter of the heads where they are few.

    Lists that were made, and not labelled, are like each other: what a few heads win on them they lose on others.
    """
    detection = detect(recordings, model, shape, mode, options, readout=readout, copying=copying)
    deepest = shape.num_layers - 1 if options.max_layer is None else options.max_layer
    available = sum(map(len, detection.values[options.criterion][: deepest + 1]))
    least = min(_LEAST_HEADS, max(1, available // 4))
    if options.num_heads != "auto" or len(detection.heads) >= least:
        return detection
    enough = options.model_copy(update={"num_heads": least})
    return detect(recordings, model, shape, mode, enough, readout=readout, copying=copying)


def check_worth(detection: Detection, controls: Mapping[str, float]) -> str:
    """What the chosen heads are worth on lists held out, in words.

    Args:
        detection: with heads chosen on other lists than they are judged on.
        controls: nDCG@10 of orders that read nothing, such as the shortest first.

    Raises:
        NoHeadsError: they are not better than all heads together (p < .05), or not by a standard error than a control.
            Words in common are a control where they tell nearly every right passage, at .9 or more: what a passage says
            and the words that it says it with go together.
    """
    chosen, together = detection.quality[detection.options.criterion], detection.quality["all"]
    figures = {"all heads together": together.mean} | dict(controls)
    worth = f"nDCG@10 on lists held out {chosen.mean:.3f} ± {chosen.error:.3f}; " + ", ".join(
        f"{name} {value:.3f}" for name, value in figures.items()
    )
    better = chosen.mean > together.mean and detection.p_value_all < 0.05
    telling = [value for name, value in controls.items() if name != _WORDS or value >= _WORDS_TELL]
    if not better or any(chosen.mean - chosen.error <= value for value in telling):
        raise NoHeadsError(
            f"no heads of {detection.model} were found that tell relevant passages from others: {worth}, p = "
            f"{detection.p_value_all:.3f} against all heads; expected more than each of them: give more passages, of "
            "several sentences each, find heads on labelled examples (`qrhead detect`), or read every head with "
            "heads='all'"
        )
    return worth


def controls(examples: Sequence[LabelledExample]) -> dict[str, float]:
    """nDCG@10 of orders that need no model: the lists' own, the shortest or longest first, the words in common (BM25).

    Heads that are no better have found what gives a made list away, and nothing of what a passage says.

    >>> from qrhead_rag import Passage
    >>> example = LabelledExample(query="red?", documents=(Passage(text="Blue."), Passage(text="Red.")), relevant=(1,))
    >>> {name: round(value, 2) for name, value in controls([example]).items()}
    {'order': 0.63, 'shortest': 1.0, 'longest': 0.63, 'BM25': 1.0}
    """
    orders: dict[str, _Scorer] = {
        "order": lambda query, documents: [-index for index in range(len(documents))],
        "shortest": lambda query, documents: [-len(document.text) for document in documents],
        "longest": lambda query, documents: [len(document.text) for document in documents],
        _WORDS: lambda query, documents: BM25([document.content for document in documents]).scores(query),
    }
    return {name: _mean_ndcg(score, examples) for name, score in orders.items()}


def _mean_ndcg(score: _Scorer, examples: Sequence[LabelledExample]) -> float:
    values = [
        float(ndcg_of_scores(torch.tensor([score(example.query, example.documents)]), example)) for example in examples
    ]
    return sum(values) / len(values)


def _steps(advance: Callable[[int], object]) -> Callable[[int, int], None]:
    """Moves a bar by one for each list of a recording."""

    def on_progress(done: int, total: int) -> None:
        if done:
            advance(1)

    return on_progress
