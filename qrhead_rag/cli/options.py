"""The options that commands share, in groups: a model, a selection, labelled data, a pool of actors."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from qrhead_rag.core.heads import KeyDtype, Mode, Readout, parse_heads
from qrhead_rag.core.selection import Fallback, Order, Selection

if TYPE_CHECKING:
    from qrhead_rag.cluster.pool import Pool
    from qrhead_rag.datasets.examples import LabelledExample
    from qrhead_rag.evaluate.writer import Writer
    from qrhead_rag.ranking.retriever import QRRetriever

HeadsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help='Name of a shipped set, "all", a .json file, or pairs like 17-3,18-6; by default the model\'s.'),
]
ModeOption: TypeAlias = Annotated[
    Mode | None, typer.Option(help="How documents are run through the model; by default as its heads rank best.")
]
ReadoutOption: TypeAlias = Annotated[
    Readout | None,
    typer.Option(
        help="How attention becomes scores: averaged over the query span and calibrated (published), or what each "
        "token of the query finds beyond the instruction (evidence); by default as the heads were found."
    ),
]
LayoutOption: TypeAlias = Annotated[
    Literal["given", "reversed"] | None,
    typer.Option(help="How a list is laid into the prompt (listwise); by default as given."),
]
InstructionOption: TypeAlias = Annotated[str | None, typer.Option(help="Replaces the instruction before the query.")]
PieceOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Longer documents are read in pieces of this many tokens (independent, late).")
]
KeyDtypeOption: TypeAlias = Annotated[
    KeyDtype | None,
    typer.Option(help="How keys are stored: float16 by default; int8 takes half of its bytes (late)."),
]
_STORE = typer.Option(help="A file that keeps encoded documents for every process; made if missing (late).")
StoreOption: TypeAlias = Annotated[Path, _STORE]
OptionalStoreOption: TypeAlias = Annotated[Path | None, _STORE]
PruneOption: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Cut documents to the sentences whose evidence per token reaches this share of the list's mean."),
]
PruneTokensOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Cut documents to their best sentences, within this many tokens for all of them.")
]
OrderOption: TypeAlias = Annotated[
    Literal["given", "reversed", "shuffled"], typer.Option(help="How the candidates stand in a list.")
]


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command that typer can read: it takes the fields of each option group in place of the group.

    A group is a parameter whose type is a dataclass of options.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: each.annotation for name, each in signature.parameters.items() if is_dataclass(each.annotation)
    }
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in signature.parameters.items()
        for parameter in (inspect.signature(groups[name]).parameters.values() if name in groups else [each])
    ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


@dataclass(frozen=True)
class ModelOptions:
    """A model, and where it runs."""

    model: Annotated[
        str | None, typer.Option(help="Hub id or local folder; by default the embedded SmolLM2-135M-Instruct.")
    ] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the best there is.")] = None
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16; by default float32 on cpu, else the model's."),
    ] = None

    def load(self, heads: str | None, mode: Mode | None, **options: Any) -> "QRRetriever":
        """Load the retriever of the model.

        Raises:
            ValueError, OSError: an option that names nothing usable.
        """
        from qrhead_rag.ranking.retriever import QRRetriever

        with self._clear_errors():
            return QRRetriever.from_pretrained(
                self.model, heads=parse_heads(heads), mode=mode, device=self.device, dtype=self.dtype, **options
            )

    def load_writer(self, **options: Any) -> "Writer":
        """Load the whole model, so that it can write.

        Raises:
            ValueError, OSError: an option that names nothing usable.
        """
        from qrhead_rag.evaluate.writer import Writer

        with self._clear_errors():
            return Writer.from_pretrained(self.model, device=self.device, dtype=self.dtype, **options)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Refuse an unknown device or dtype, and name the model in errors of loading it."""
        import torch

        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype {self.dtype!r} is unknown; expected float32, bfloat16 or float16")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
        try:
            yield
        except OSError as error:
            if self.model is None or error.filename is not None or self.model in str(error):
                raise
            raise OSError(f"{self.model}: {error}") from error


@dataclass(frozen=True)
class SelectionOptions:
    """What is kept of a ranking."""

    top_n: Annotated[int | None, typer.Option(help="Keep at most this many.")] = None
    min_share: Annotated[float | None, typer.Option(help="Keep what has this share of the positive scores.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Keep whole documents within this many tokens.")] = None
    order: Annotated[Order, typer.Option(help="Best first, or as in the input.")] = "rank"
    fuse_retrieval: Annotated[
        float | None,
        typer.Option(
            help="Weight of the input's order, where a first stage made it, beside the heads'; 1 counts alike."
        ),
    ] = None
    min_evidence: Annotated[
        float | None, typer.Option(help="Refuse a list of less evidence (0 to 1); qrhead calibrate recommends a floor.")
    ] = None
    fallback: Annotated[
        Fallback, typer.Option(help="What a refused list gives: nothing, or the first documents of the input.")
    ] = "empty"

    def validated(self) -> Selection:
        """The selection.

        Raises:
            ValueError: an option out of range.
        """
        return Selection(**vars(self))


@dataclass(frozen=True)
class DataOptions:
    """Which labelled examples are read."""

    format: Annotated[
        str | None,
        typer.Option(
            help="beir, clipper, dpr, hotpotqa, jsonl, locomo, longmemeval, musique, qrhead; by default recognised."
        ),
    ] = None
    unit: Annotated[
        Literal["session", "round", "turn"] | None,
        typer.Option(help="What a document is: session or round (longmemeval), turn or session (locomo)."),
    ] = None
    split: Annotated[str | None, typer.Option(help="Which qrels (beir); by default test.")] = None
    candidates: Annotated[
        int | None,
        typer.Option(help="Documents in a list that BM25 makes (beir, dpr: 20) or cuts (the others: as they are)."),
    ] = None
    examples: Annotated[
        int | None, typer.Option(help="Use at most this many examples of each file, drawn with the seed.")
    ] = None
    part: Annotated[
        str, typer.Option(help="2/3 is the second of three parts, so that heads can be tested on other examples.")
    ] = "1/1"
    seed: Annotated[int, typer.Option(help="Of draws and shuffles.")] = 0
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Use the rest where records are malformed.")] = False

    def load(self, path: Path) -> "list[LabelledExample]":
        """Load the examples of a file or folder; malformed records are listed on stderr, one a line.

        Raises:
            ValueError, OSError: as `load_examples`.
            typer.Exit: malformed records without `skip_bad`.
        """
        from qrhead_rag.datasets.load import DatasetError, load_examples, sample_examples

        number, _, parts = self.part.partition("/")
        if not (number.isdigit() and parts.isdigit()):
            raise ValueError(f"--part {self.part}: expected two numbers, as in 1/2")
        try:
            examples = load_examples(
                path,
                format=self.format,
                unit=self.unit,
                split=self.split,
                candidates=self.candidates,
                skip_bad=self.skip_bad,
            )
        except DatasetError as error:
            for problem in error.problems:
                typer.echo(str(problem), err=True)
            typer.echo(
                f"qrhead: {len(error.problems)} malformed records; mend them, or use the rest with --skip-bad", err=True
            )
            raise typer.Exit(2) from error
        return sample_examples(examples, count=self.examples, part=(int(number), int(parts)), seed=self.seed)


@dataclass(frozen=True)
class PoolOptions:
    """Where actors run."""

    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, auto or ray://HOST:PORT; by default one is started on this machine."),
    ] = None
    concurrency: Annotated[
        str, typer.Option(help="Actors, each with a model: a number, or as in 1-8 the fewest and the most.")
    ] = "1"
    gpus: Annotated[float, typer.Option(help="GPUs of each actor, perhaps a part of one.")] = 0
    cpus: Annotated[
        int | None, typer.Option(help="CPUs of each actor; by default this machine's are shared out, on a cluster 1.")
    ] = None

    def validated(self) -> "Pool":
        """The pool.

        Raises:
            ValueError: an option out of range.
        """
        from qrhead_rag.cluster.pool import Pool

        if not re.fullmatch(r"\d+(-\d+)?", self.concurrency):
            raise ValueError(f"--concurrency {self.concurrency}: expected a number, or two as in 1-8")
        fewest, _, most = self.concurrency.partition("-")
        actors = int(fewest), int(most or fewest)
        return Pool(address=self.address, concurrency=actors, gpus=self.gpus, cpus=self.cpus)


def without_none(**options: Any) -> dict[str, Any]:
    """The options that have a value, so that the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}
