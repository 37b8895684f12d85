"""The options that commands share, and what they ask for: a model, labelled data, a pool of actors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from qrhead_rag.core.heads import Mode, parse_heads

if TYPE_CHECKING:
    from qrhead_rag.cluster.pool import Pool
    from qrhead_rag.datasets.examples import LabelledExample
    from qrhead_rag.evaluate.writer import Writer
    from qrhead_rag.ranking.retriever import QRRetriever

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
    from qrhead_rag.ranking.retriever import QRRetriever

    with _named_errors(model, device, dtype):
        return QRRetriever.from_pretrained(
            model, heads=parse_heads(heads), mode=mode, device=device, dtype=dtype, **options
        )


def load_writer(model: str | None, device: str | None, dtype: str | None, **options: Any) -> "Writer":
    """The model that the options ask for, whole, so that it can write.

    Raises:
        ValueError, OSError: an option that names nothing usable.
    """
    from qrhead_rag.evaluate.writer import Writer

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


FormatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="beir, clipper, dpr, hotpotqa, jsonl, locomo, longmemeval, musique, qrhead; by default recognised.",
    ),
]
UnitOption: TypeAlias = Annotated[
    Literal["session", "round", "turn"] | None,
    typer.Option(help="What a document is: session or round (longmemeval), turn or session (locomo)."),
]
SplitOption: TypeAlias = Annotated[str | None, typer.Option(help="Which qrels (beir); by default test.")]
CandidatesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Documents in a list that BM25 makes (beir, dpr: 20) or cuts (the others: as they are)."),
]
SkipBadOption: TypeAlias = Annotated[bool, typer.Option("--skip-bad", help="Use the rest where records are malformed.")]
ExamplesOption: TypeAlias = Annotated[
    int | None, typer.Option("--examples", help="Use at most this many examples of each file, drawn with the seed.")
]
PartOption: TypeAlias = Annotated[
    str, typer.Option(help="2/3 is the second of three parts, so that heads can be tested on other examples.")
]
OrderOption: TypeAlias = Annotated[
    Literal["given", "reversed", "shuffled"], typer.Option(help="How the candidates stand in a list.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of draws and shuffles.")]


def read_data(
    path: Path,
    *,
    format: str | None,
    unit: Literal["session", "round", "turn"] | None,
    split: str | None,
    candidates: int | None,
    skip_bad: bool,
    examples: int | None,
    part: str,
    seed: int,
) -> "list[LabelledExample]":
    """The examples that the options ask for; malformed records are listed on stderr, one a line.

    Raises:
        ValueError, OSError: as `load_examples`.
        typer.Exit: malformed records without `skip_bad`.
    """
    from qrhead_rag.datasets.load import DatasetError, load_examples, sample_examples

    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit()):
        raise ValueError(f"--part {part}: expected two numbers, as in 1/2")
    try:
        found = load_examples(path, format=format, unit=unit, split=split, candidates=candidates, skip_bad=skip_bad)
    except DatasetError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        typer.echo(
            f"qrhead: {len(error.problems)} malformed records; mend them, or use the rest with --skip-bad", err=True
        )
        raise typer.Exit(2) from error
    return sample_examples(found, count=examples, part=(int(number), int(parts)), seed=seed)


AddressOption: TypeAlias = Annotated[
    str | None, typer.Option(help="A Ray cluster, auto or ray://HOST:PORT; by default one is started on this machine.")
]
ConcurrencyOption: TypeAlias = Annotated[
    str, typer.Option(help="Actors, each with a model: a number, or as in 1-8 the fewest and the most.")
]
GpusOption: TypeAlias = Annotated[float, typer.Option(help="GPUs of each actor, perhaps a part of one.")]
CpusOption: TypeAlias = Annotated[
    int | None, typer.Option(help="CPUs of each actor; by default this machine's are shared out, on a cluster 1.")
]


def pool_of(address: str | None, concurrency: str, gpus: float, cpus: int | None) -> "Pool":
    """Where to run, from the options.

    Raises:
        ValueError: an option out of range.
    """
    from qrhead_rag.cluster.pool import Pool

    if not re.fullmatch(r"\d+(-\d+)?", concurrency):
        raise ValueError(f"--concurrency {concurrency}: expected a number, or two as in 1-8")
    fewest, _, most = concurrency.partition("-")
    return Pool(address=address, concurrency=(int(fewest), int(most or fewest)), gpus=gpus, cpus=cpus)
