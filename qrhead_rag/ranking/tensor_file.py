"""`late` lists on disk: one safetensors file whose header says in JSON what it was made with.

Chunks are encoded where they are ingested and reranked anywhere else. Nothing in the file is executed when it is read.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from qrhead_rag.files import atomic_write, parse_json

_FORMAT = "qrhead-late-3"


def write_encoded(path: str | Path, identity: Mapping[str, Any], content: Any, tensors: dict[str, Tensor]) -> None:
    """Write a file in one step: whoever reads it sees all of it or none.

    Args:
        path: the file.
        identity: what must be the same where it is read.
        content: the rest of the header.
        tensors: by name.

    Raises:
        TypeError: the content cannot be written as JSON.
    """
    versions = {name: version(name) for name in ("qrhead-rag", "transformers")}
    header = json.dumps({"identity": identity, "versions": versions, "content": content})
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "header": header, "checksum": _checksum(header, tensors)}
    with atomic_write(path) as file:
        save_file(tensors, file, metadata)


def read_encoded(path: str | Path, identity: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The content and tensors of a file.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: damaged, of another format, or made with another model, head set, mode or option; the message names
            the file and both sides.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected one written by EncodedPassages.save")
    try:
        metadata, tensors = read_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {_FORMAT!r}")
        if metadata.get("checksum") != _checksum(metadata["header"], tensors):
            raise ValueError("its content is not what its checksum says")
        header = parse_json(metadata["header"])
        stored, content = dict(header["identity"]), header["content"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected a whole file written by EncodedPassages.save: encode again"
        ) from error
    for name, expected in identity.items():
        if stored.get(name) != expected:
            raise ValueError(
                f"{path} was encoded with {name} {stored.get(name)}, the retriever has {name} {expected}; "
                "load it with the retriever it was made by, or encode again"
            )
    return content, tensors


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    It is read at once, not mapped: another file may take its place between its header and its tensors, and one that is
    cut off while it is mapped ends the process.

    Raises:
        OSError: no such file, or it cannot be read.
        SafetensorError: damaged, or of another format.
    """
    content = Path(path).read_bytes()
    tensors = load(content)
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    return parse_json(header.decode()).get("__metadata__", {}), tensors


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
