"""`late` lists on disk: one safetensors file whose header says in JSON what it was made with.

Chunks are encoded where they are ingested and reranked anywhere else. Nothing in the file is executed when it is read.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "qrhead-late-1"


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
    path = Path(path)
    versions = {name: version(name) for name in ("qrhead-rag", "transformers")}
    header = json.dumps({"identity": identity, "versions": versions, "content": content})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    os.close(handle)
    try:
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            temporary,
            {"format": _FORMAT, "header": header},
        )
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_encoded(path: str | Path, identity: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """The content and tensors of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another format, or made with another model, head set, mode or option; the message names
            the file and both sides.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected one written by EncodedPassages.save")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {_FORMAT!r}")
        header = json.loads(metadata["header"])
        found, content = header["identity"], header["content"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected a whole file written by EncodedPassages.save: encode again"
        ) from error
    for name, expected in identity.items():
        if found.get(name) != expected:
            raise ValueError(
                f"{path} was encoded with {name} {found.get(name)}, the retriever has {name} {expected}; "
                "load it with the retriever it was made by, or encode again"
            )
    return content, tensors
