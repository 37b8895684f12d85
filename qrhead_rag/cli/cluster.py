"""`qrhead rank-dataset` and `qrhead encode-dataset`: data sets, on as many machines as there are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from qrhead_rag.cli.options import (
    AddressOption,
    ConcurrencyOption,
    CpusOption,
    DeviceOption,
    DtypeOption,
    GpusOption,
    HeadsOption,
    InstructionOption,
    LayoutOption,
    ModelOption,
    ModeOption,
    PieceOption,
    given,
    pool_of,
)
from qrhead_rag.cli.output import one_line_errors, resumable, shown, summary
from qrhead_rag.core.heads import parse_heads
from qrhead_rag.core.selection import Order, Selection

if TYPE_CHECKING:
    from qrhead_rag.cluster.run import Progress

SourcesArgument: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="IN", help="Files, folders or patterns (in quotes), .jsonl or .parquet.")
]
OutArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder for the results; an interrupted run in it is gone on with.")
]
DeviceMapOption: TypeAlias = Annotated[
    str | None, typer.Option(help="auto spreads a model over the GPUs of its actor.")
]
BatchOption: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Documents run together up to this many tokens, those of several lists too (independent, late)."),
]
ShardOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Bytes of input in a shard, which is written, and redone, as a whole.")
]


def rank_dataset(
    sources: SourcesArgument,
    out: OutArgument,
    model: ModelOption = None,
    heads: HeadsOption = None,
    mode: ModeOption = None,
    top_n: Annotated[int | None, typer.Option(help="Keep at most this many.")] = None,
    min_share: Annotated[float | None, typer.Option(help="Keep what has this share of the positive scores.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Keep whole documents within this many tokens.")] = None,
    order: Annotated[Order, typer.Option(help="Best first, or as in the list.")] = "rank",
    format: Annotated[
        Literal["jsonl", "parquet"] | None, typer.Option(help="Of the rankings; by default that of the first file.")
    ] = None,
    layout: LayoutOption = None,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    piece_tokens: PieceOption = None,
    batch_tokens: BatchOption = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="What an actor may keep of documents for lists that share some; by default none.")
    ] = None,
    address: AddressOption = None,
    concurrency: ConcurrencyOption = "1",
    gpus: GpusOption = 0,
    cpus: CpusOption = None,
    shard_bytes: ShardOption = None,
) -> None:
    """Rank every list of a data set: records with query and documents (strings, or objects with text, title, id)."""
    with one_line_errors():
        selection = Selection(top_n=top_n, min_share=min_share, max_tokens=max_tokens, order=order)
        pool = pool_of(address, concurrency, gpus, cpus)
        from qrhead_rag.cluster.rank import rank_dataset as run

        options = given(
            layout=layout,
            instruction=instruction,
            device=device,
            dtype=dtype,
            device_map=device_map,
            piece_tokens=piece_tokens,
            batch_tokens=batch_tokens,
            cache_bytes=cache_bytes,
        )
        with shown("lists") as moved, resumable():
            done = run(
                sources,
                out,
                model=model,
                heads=parse_heads(heads),
                mode=mode,
                selection=selection,
                format=format,
                pool=pool,
                shard_bytes=shard_bytes,
                on_progress=moved,
                **options,
            )
        _finish(done, "lists", out)


def encode_dataset(
    sources: SourcesArgument,
    out: OutArgument,
    model: ModelOption = None,
    heads: HeadsOption = None,
    instruction: InstructionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    device_map: DeviceMapOption = None,
    piece_tokens: PieceOption = None,
    batch_tokens: BatchOption = None,
    key_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="How keys are stored.")
    ] = "float16",
    address: AddressOption = None,
    concurrency: ConcurrencyOption = "1",
    gpus: GpusOption = 0,
    cpus: CpusOption = None,
    shard_bytes: ShardOption = None,
) -> None:
    """Encode every document of a data set (text, perhaps title, id) under late, into shards that load as one list."""
    with one_line_errors():
        pool = pool_of(address, concurrency, gpus, cpus)
        from qrhead_rag.cluster.encode import encode_dataset as run

        options = given(
            instruction=instruction,
            device=device,
            dtype=dtype,
            device_map=device_map,
            piece_tokens=piece_tokens,
            batch_tokens=batch_tokens,
            key_dtype=key_dtype,
        )
        with shown("documents") as moved, resumable():
            done = run(
                sources,
                out,
                model=model,
                heads=parse_heads(heads),
                pool=pool,
                shard_bytes=shard_bytes,
                on_progress=moved,
                **options,
            )
        _finish(done, "documents", out)


def _finish(done: "Progress", noun: str, out: Path) -> None:
    typer.echo(summary(done, noun, str(out)), err=True)
    failed = [file for file in sorted((out / "_errors").iterdir()) if file.suffix == ".jsonl"]
    if failed:
        typer.echo(f"qrhead: some {noun} could not be used; the reasons are in {out / '_errors'}", err=True)
    if done.total and done.failed == done.total:
        raise typer.Exit(1)
