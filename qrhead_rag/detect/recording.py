"""The calibrated score of every head on every document of labelled examples, one file an example.

A file's name is a digest of everything its scores depend on: model and weights, mode, readout, layout, instruction,
query, and the documents in their order. So an interrupted recording is resumed, examples shared by two data sets run
once, and one folder can hold different settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qrhead_rag.core.heads import heads_of_layers
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.files import atomic_write
from qrhead_rag.models.fingerprint import weights_fingerprint
from qrhead_rag.ranking.context import ListTooLongError
from qrhead_rag.ranking.modes import MODES
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.tensor_file import read_tensors


class RecordedExample(NamedTuple):
    """An example, its documents in the order of the run, with its scores.

    Attributes:
        example: query, documents and which are relevant.
        scores: s(d) of each head alone, row layer * num_heads + head. Shape: (heads, documents)

    >>> from qrhead_rag import Passage
    >>> example = LabelledExample(query="when?", documents=(Passage(text="a"), Passage(text="b")), relevant=(1,))
    >>> recorded = RecordedExample(example, torch.tensor([[0.1, 0.5], [0.3, 0.2]]))
    >>> recorded.scores.argmax(dim=1).tolist()  # the document that each head ranks first
    [1, 0]
    """

    example: LabelledExample
    scores: Tensor


def can_compare_heads(example: LabelledExample) -> bool:
    """Whether an example has relevant and other documents; without both, it cannot compare heads."""
    return 0 < len(example.relevant) < len(example.documents)


class Recording:
    """Recorded examples, read from their files one at a time, on every iteration.

    Args:
        examples: the examples, their documents in the order of the run.
        files: the file of each.

    >>> len(Recording([], []).usable())
    0
    """

    def __init__(self, examples: Sequence[LabelledExample], files: Sequence[Path]) -> None:
        self.examples = tuple(examples)
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.examples)

    def usable(self) -> "Recording":
        """The examples that can compare heads."""
        kept = [
            (example, file)
            for example, file in zip(self.examples, self.files, strict=True)
            if can_compare_heads(example)
        ]
        return Recording([example for example, _ in kept], [file for _, file in kept])

    def __iter__(self) -> Iterator[RecordedExample]:
        for example, file in zip(self.examples, self.files, strict=True):
            yield RecordedExample(example, read_tensors(file)[1]["scores"])


def record(
    retriever: QRRetriever,
    examples: Sequence[LabelledExample],
    folder: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Run every example and save the score of each head alone; examples already in the folder are not run again.

    Args:
        retriever: made with heads="all", or with every head of the first layers.
        examples: with their documents in the order of the run.
        folder: of the files; created if missing.
        on_progress: called with the number done and the total, before the first example and after each.

    Raises:
        ValueError: the retriever does not read every head of its layers, or lists are longer than its context.
    """
    shape, heads = retriever.shape, retriever.heads
    if heads.heads != heads_of_layers(heads.max_layer + 1, shape):
        raise ValueError(
            f"the retriever reads {len(heads.heads)} heads of {shape}; detection compares every head, in the order of "
            'the model: make it with heads="all"'
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_digest(retriever)
    files = [folder / f"{example_digest(example, settings)}.safetensors" for example in examples]
    _check_lengths(retriever, [example for example, file in zip(examples, files, strict=True) if not file.exists()])
    for done, (example, file) in enumerate(zip(examples, files, strict=True)):
        if on_progress:
            on_progress(done, len(examples))
        if not _is_whole(file, (len(heads.heads), len(example.documents))):
            scores = retriever.head_scores(example.query, example.documents)
            with atomic_write(file) as temporary:
                save_file({"scores": scores.contiguous()}, temporary)
    if on_progress:
        on_progress(len(examples), len(examples))
    return Recording(examples, files)


def settings_digest(retriever: QRRetriever) -> str:
    """A digest of what the scores depend on besides the example.

    It includes a fingerprint of the weights, so that a fine-tune of the same name counts as another model.
    """
    layers = retriever.heads.max_layer + 1
    settings: list[object] = [list(retriever.shape), layers, retriever.mode, retriever.readout]
    settings += [retriever.layout, retriever.instruction]
    settings += [retriever.context_length, MODES[retriever.mode].READING_VERSION]
    if retriever.mode != "listwise":
        settings += [retriever.options.piece_tokens, retriever.options.key_dtype]
    settings += [str(retriever.model.dtype), weights_fingerprint(retriever.model, layers)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def example_digest(example: LabelledExample, settings: str) -> str:
    """A digest of the settings and of the text of an example; labels and ids are not part of it."""
    content = [settings, example.query, [[document.title, document.text] for document in example.documents]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _check_lengths(retriever: QRRetriever, examples: Sequence[LabelledExample]) -> None:
    """Refuse lists that do not fit the context, before any other list runs."""
    if retriever.mode != "listwise":
        return
    too_long = [example.id for example in examples if retriever.needs_windows(example.query, example.documents)]
    if too_long:
        raise ListTooLongError(
            f"{len(too_long)} of {len(examples)} lists are longer than the model's context of "
            f"{retriever.context_length} tokens, for instance that of {too_long[0]!r}; cut them to fewer candidates "
            "(candidates=, --candidates), or detect under the mode 'independent' or 'late', which have no such limit"
        )


def _is_whole(file: Path, shape: tuple[int, int]) -> bool:
    try:
        scores = read_tensors(file)[1]["scores"]
    except (OSError, SafetensorError, KeyError):
        return False
    return scores.shape == shape and scores.dtype == torch.float32 and bool(scores.isfinite().all())
