"""`qrhead rank-dataset` and `qrhead encode-dataset`: whole data sets, on one machine or many."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from qrhead_rag.cli.options import (
    HeadsOption,
    InstructionOption,
    KeyDtypeOption,
    LayoutOption,
    ModelOptions,
    ModeOption,
    OptionalStoreOption,
    PieceOption,
    PoolOptions,
    SelectionOptions,
    expand_groups,
    without_none,
)
from qrhead_rag.cli.output import one_line_errors, resumable, run_bar, summary
from qrhead_rag.core.heads import parse_heads

if TYPE_CHECKING:
    from qrhead_rag.cluster.run import Progress

SourcesArgument: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="IN", help="Files, folders or patterns (in quotes), .jsonl or .parquet.")
]
OutArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder for the results; an interrupted run in it is resumed.")
]
ShardOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Bytes of input in a shard, which is written, and redone, as a whole.")
]


@dataclass(frozen=True)
class ActorOptions(ModelOptions):
    """The model of an actor, and how it reads documents."""

    device_map: Annotated[str | None, typer.Option(help="auto spreads a model over the GPUs of its actor.")] = None
    instruction: InstructionOption = None
    piece_tokens: PieceOption = None
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of documents run together (independent, late); default by device."),
    ] = None


@expand_groups
def rank_dataset(
    sources: SourcesArgument,
    out: OutArgument,
    *,
    model: ActorOptions,
    heads: HeadsOption = None,
    mode: ModeOption = None,
    selection: SelectionOptions,
    format: Annotated[
        Literal["jsonl", "parquet"] | None, typer.Option(help="Of the rankings; by default that of the first file.")
    ] = None,
    layout: LayoutOption = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="What an actor may keep of documents for lists that share some; by default none.")
    ] = None,
    pool: PoolOptions,
    shard_bytes: ShardOption = None,
) -> None:
    """Rank every list of a data set: records with query and documents (strings, or objects with text, title, id)."""
    with one_line_errors():
        to_keep, where = selection.validated(), pool.validated()
        from qrhead_rag.cluster.rank import rank_dataset as run

        with run_bar("lists") as on_progress, resumable():
            done = run(
                sources,
                out,
                heads=parse_heads(heads),
                mode=mode,
                selection=to_keep,
                format=format,
                pool=where,
                shard_bytes=shard_bytes,
                on_progress=on_progress,
                **without_none(**vars(model), layout=layout, cache_bytes=cache_bytes),
            )
        _finish(done, "lists", out)


@expand_groups
def encode_dataset(
    sources: SourcesArgument,
    out: OutArgument,
    *,
    model: ActorOptions,
    heads: HeadsOption = None,
    key_dtype: KeyDtypeOption = None,
    store: OptionalStoreOption = None,
    pool: PoolOptions,
    shard_bytes: ShardOption = None,
) -> None:
    """Encode every document of a data set (text, perhaps title, id) under late, into shards that load as one list.

    With --store they go into that store, and OUT holds what is done.
    """
    with one_line_errors():
        where = pool.validated()
        from qrhead_rag.cluster.encode import encode_dataset as run

        with run_bar("documents") as on_progress, resumable():
            done = run(
                sources,
                out,
                heads=parse_heads(heads),
                pool=where,
                shard_bytes=shard_bytes,
                on_progress=on_progress,
                **without_none(**vars(model), key_dtype=key_dtype, store=store),
            )
        _finish(done, "documents", out)


def _finish(done: "Progress", noun: str, out: Path) -> None:
    typer.echo(summary(done, noun, str(out)), err=True)
    if any((out / "_errors").glob("part-*")):
        typer.echo(f"qrhead: some {noun} could not be used; the reasons are in {out / '_errors'}", err=True)
    if done.total and done.failed == done.total:
        raise typer.Exit(1)
