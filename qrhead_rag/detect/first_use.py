"""A model without a shipped head set finds its heads at first use, on the detection set of the package.

They are kept in the user's cache for the model of this name and revision, and used while its weights are the same.
"""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qrhead_rag.core.heads import DEFAULT_READOUTS, HeadChooser, HeadSet, Mode, ModelShape, Readout, heads_of_layers
from qrhead_rag.core.model_view import find_decoder, layer_list
from qrhead_rag.datasets.encyclopedia import load_encyclopedia
from qrhead_rag.detect.finding import best_detection, check_worth, controls, layers_to_search
from qrhead_rag.detect.report import DetectionOptions
from qrhead_rag.evaluate.metrics import parse_metrics
from qrhead_rag.files import write_text
from qrhead_rag.models.embedded import cache_folder, locked
from qrhead_rag.models.fingerprint import weights_fingerprint
from qrhead_rag.models.loading import LoadedModel
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.warn import warn_caller

_MODE: Mode = "late"  # of heads that are found where none is named: the cheapest
_LARGE = 150_000_000
"""Weights in the layers that are searched, from which half of the detection set, in shorter lists, has to do."""


class _KeptHeads(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    heads: HeadSet


def heads_at_first_use(
    load: Callable[[HeadSet | HeadChooser], LoadedModel],
    name: str,
    revision: str | None,
    mode: Mode | None,
    readout: Readout | None,
) -> LoadedModel:
    """Load a model for heads that were found before, or find them now.

    Processes that start together find them once: the others wait. Where the cache cannot be written, they are not kept.

    Args:
        load: loads the model for heads, or for those that a function of its name and shape gives.
        name: hub id or folder of the model.
        revision: of the hub.
        mode: the mode that the heads will be read under; None is `late`.
        readout: how attention becomes scores; None takes what is better on lists held out.

    Raises:
        NoHeadsError: the model has no heads that are worth more than all of them together.
        ImportError: the extra `eval` is not installed.
    """
    mode = mode or _MODE
    file = _file(name, revision, mode, readout)
    if (loaded := _load_kept(load, file)) is not None:
        return loaded
    parse_metrics(["nDCG@10"])  # fails here, not after minutes, if the extra is missing
    with ExitStack() as stack:
        obstacle = None
        try:
            stack.enter_context(locked(file))
        except OSError as error:
            obstacle = error
        if (loaded := _load_kept(load, file)) is not None:
            return loaded
        loaded = _find(load, mode, readout)
        kept = _KeptHeads(fingerprint=_fingerprint(loaded), heads=loaded.heads)
        try:
            write_text(file, kept.model_dump_json(indent=1, exclude_none=True) + "\n")
        except OSError as error:
            obstacle = error
    if obstacle is not None:
        warn_caller(
            f"the heads of {name} are found at every start, since {cache_folder()} cannot be written "
            f"({obstacle.strerror or obstacle}); set QRHEAD_CACHE to a folder that can"
        )
    return loaded


def _file(name: str, revision: str | None, mode: Mode, readout: Readout | None) -> Path:
    digest = hashlib.sha256(json.dumps([name, revision, mode, readout]).encode()).hexdigest()[:16]
    readable = re.sub(r"\W+", "-", name)[-60:].strip("-")
    return cache_folder() / "heads" / f"{readable}-{digest}.json"


def _load_kept(load: Callable[[HeadSet | HeadChooser], LoadedModel], file: Path) -> LoadedModel | None:
    """The model with the heads that a file has; None where there are none, or they are those of other weights."""
    try:
        kept = _KeptHeads.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    try:
        loaded = load(kept.heads)
    except ValueError:  # a model of another shape, by now; what else is wrong is said when it is loaded to find heads
        return None
    return loaded if _fingerprint(loaded) == kept.fingerprint else None


def _fingerprint(loaded: LoadedModel) -> str:
    return weights_fingerprint(loaded.model, loaded.heads.max_layer + 1)


def _weights_of(loaded: LoadedModel) -> int:
    _, layers = layer_list(find_decoder(loaded.model))
    searched = layers[: loaded.heads.max_layer + 1]
    return sum(weight.numel() for weight in searched.parameters())


def _find(load: Callable[[HeadSet | HeadChooser], LoadedModel], mode: Mode, readout: Readout | None) -> LoadedModel:
    def searched(name: str, shape: ModelShape) -> HeadSet:
        return HeadSet(
            model=name,
            architecture=shape.architecture,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            mode=mode,
            readout=readout or DEFAULT_READOUTS[mode],
            heads=heads_of_layers(layers_to_search(shape, None, shape.num_layers), shape),
        )

    loaded = load(searched)
    large = _weights_of(loaded) >= _LARGE
    examples = load_encyclopedia(candidates=12, every=2) if large else load_encyclopedia()
    warn_caller(
        f"no head set is shipped for {loaded.name}: its heads are found now, on {len(examples)} questions of the "
        f"package, and kept in {cache_folder()}; this takes minutes on a CPU, once (heads='shipped' refuses instead)"
    )
    retriever = QRRetriever(loaded.model, loaded.tokenizer, heads=loaded.heads, mode=mode, model_name=loaded.name)
    readouts: list[Readout] = [readout or DEFAULT_READOUTS[mode]]
    if readout is None and mode != "listwise":  # which reads each list anew
        readouts.append("published")
    options = DetectionOptions(criterion="ndcg")
    detection = best_detection(retriever, {"encyclopedia": examples}, readouts, options, show_progress=True)
    worth = check_worth(detection, controls(examples))
    heads = detection.head_set("found", note=f"{worth}, on {len(examples)} questions of the package")
    return replace(loaded, heads=heads)
