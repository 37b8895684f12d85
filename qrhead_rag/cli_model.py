"""The model that a command's options ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qrhead_rag.heads import Mode, parse_heads

if TYPE_CHECKING:
    from qrhead_rag.generation import Writer
    from qrhead_rag.retriever import QRRetriever


def load(
    model: str | None, heads: str | None, mode: Mode, device: str | None, dtype: str | None, **options: Any
) -> "QRRetriever":
    """The retriever that the options ask for.

    Raises:
        ValueError, OSError: an option that names nothing usable.
    """
    from qrhead_rag.retriever import QRRetriever

    with _named_errors(model, device, dtype):
        return QRRetriever.from_pretrained(
            model, heads=parse_heads(heads), mode=mode, device=device, dtype=dtype, **options
        )


def load_writer(model: str | None, device: str | None, dtype: str | None, **options: Any) -> "Writer":
    """The model that the options ask for, whole, so that it can write.

    Raises:
        ValueError, OSError: an option that names nothing usable.
    """
    from qrhead_rag.generation import Writer

    with _named_errors(model, device, dtype):
        return Writer.from_pretrained(model, device=device, dtype=dtype, **options)


@contextmanager
def _named_errors(model: str | None, device: str | None, dtype: str | None) -> Iterator[None]:
    """Refuse a device or dtype that there is not, and name the model in what goes wrong with it."""
    import torch

    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, bfloat16 or float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    try:
        yield
    except OSError as error:
        if model is None or error.filename is not None or model in str(error):
            raise
        raise OSError(f"{model}: {error}") from error
