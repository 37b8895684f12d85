"""The options that say which model is read, and how; and the model that they ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from qrhead_rag.heads import Mode, parse_heads

if TYPE_CHECKING:
    from qrhead_rag.generation import Writer
    from qrhead_rag.retriever import QRRetriever

ModelOption: TypeAlias = Annotated[
    str | None, typer.Option("--model", help="Hub id or local folder; by default the embedded SmolLM2-135M-Instruct.")
]
HeadsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--heads", help='Name of a shipped set, "all", a .json file, or pairs like 17-3,18-6; by default the model\'s.'
    ),
]
ModeOption: TypeAlias = Annotated[
    Mode | None,
    typer.Option("--mode", help="How documents are run through the model; by default as its heads rank best."),
]
DeviceOption: TypeAlias = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; by default the best there is.")
]
DtypeOption: TypeAlias = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16; by default float32 on cpu, else the model's.")
]
InstructionOption: TypeAlias = Annotated[
    str | None, typer.Option("--instruction", help="Replaces the instruction before the query.")
]
LayoutOption: TypeAlias = Annotated[
    Literal["given", "reversed"] | None,
    typer.Option("--layout", help="How a list is laid into the prompt (listwise); by default as given."),
]
PieceOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--piece-tokens", help="Longer documents are read in pieces of this many tokens (independent, late)."),
]


def load(
    model: str | None, heads: str | None, mode: Mode | None, device: str | None, dtype: str | None, **options: Any
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


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}
