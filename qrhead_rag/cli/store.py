"""`qrhead encode` and `qrhead store`: a corpus into a passage store, and what such a store holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    HeadsOption,
    KeyDtypeOption,
    ModelOptions,
    PieceOption,
    StoreOption,
    expand_groups,
    without_none,
)
from qrhead_rag.cli.output import one_line_errors, progress_bar
from qrhead_rag.show.ink import printable

if TYPE_CHECKING:
    from qrhead_rag.ranking.byte_store import SqliteStore
    from qrhead_rag.ranking.passage_store import PassageStore

StoreArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="PATH", help="The file of the store.")]

app = typer.Typer(help="What a passage store holds: count it, check it, make it smaller.", no_args_is_help=True)


@expand_groups
def encode(
    file: Annotated[
        Path,
        typer.Argument(
            help=".txt (a document a line), .jsonl or .parquet (text, title, id), or a folder of text files."
        ),
    ],
    store: StoreOption,
    *,
    model: ModelOptions,
    heads: HeadsOption = None,
    piece_tokens: PieceOption = None,
    key_dtype: KeyDtypeOption = None,
) -> None:
    """Encode documents into a store, once: rankings with the same model and options read them there (--store)."""
    with one_line_errors():
        from qrhead_rag.datasets.passages import read_passages

        passages = read_passages(file)
        options = without_none(piece_tokens=piece_tokens, key_dtype=key_dtype)
        retriever = model.load(heads, "late", store=store, **options)
        encoded = retriever.encode_to_store(passages, show_progress=True)
        typer.echo(f"{len(passages)} documents, {encoded} of them encoded now, in {store}")


@app.command()
def stats(path: StoreArgument) -> None:
    """Count the passages of each model and its settings, and their bytes."""
    with one_line_errors():
        passages, file = _open(path)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("settings", no_wrap=True)
        table.add_column("passages", justify="right")
        for column in ("model", "heads", "keys", "pieces"):
            table.add_column(column, overflow="fold")
        for stored in passages.contents():
            known = stored.settings
            values = (known.get("model", "?"), len(known.get("heads", ())), known.get("key_dtype", "?"))
            pieces = known.get("piece_tokens") or "whole"
            table.add_row(stored.digest[:8], str(stored.passages), *(printable(str(v)) for v in (*values, pieces)))
        Console().print(table, markup=False)
        sizes = file.stats()
        typer.echo(f"{sizes.nbytes / 1e6:.1f} MB of values in {sizes.file_bytes / 1e6:.1f} MB on disk")


@app.command()
def prune(
    path: StoreArgument,
    max_bytes: Annotated[
        int | None, typer.Option(min=0, help="Delete the passages used longest ago until the values fit.")
    ] = None,
    settings: Annotated[
        str | None, typer.Option(help="Delete the passages with these settings, as `stats` names them.")
    ] = None,
) -> None:
    """Make a store smaller. What is deleted is encoded again when it is next ranked."""
    with one_line_errors():
        if max_bytes is None and settings is None:
            raise ValueError("nothing says what is deleted; expected --max-bytes or --settings")
        passages, file = _open(path)
        deleted = 0
        if settings is not None:
            digests = [stored.digest for stored in passages.contents() if stored.digest.startswith(settings)]
            if len(digests) != 1:
                raise ValueError(
                    f"{len(digests)} settings in {path} begin with {settings!r}; expected one of those that `qrhead "
                    "store stats` names"
                )
            deleted = passages.delete_settings(digests[0])
        deleted += file.prune(file.stats().nbytes if max_bytes is None else max_bytes)
        typer.echo(f"{deleted} deleted; {file.stats().file_bytes / 1e6:.1f} MB on disk")


@app.command()
def verify(
    path: StoreArgument, delete: Annotated[bool, typer.Option("--delete", help="Delete the damaged ones.")] = False
) -> None:
    """Check every passage against its checksum; exit code 1 where any is damaged."""
    with one_line_errors():
        passages, _ = _open(path)
        total, checked = sum(stored.passages for stored in passages.contents()), 0
        damaged: list[str] = []
        with progress_bar("checking") as advance:
            for count, keys in passages.check():
                checked += count
                damaged += keys
                advance(checked, total)
        if delete:
            passages.delete(damaged)
        typer.echo(f"{checked} passages checked, {len(damaged)} damaged{' and deleted' if delete and damaged else ''}")
    if damaged and not delete:
        raise typer.Exit(1)


def _open(path: Path) -> "tuple[PassageStore, SqliteStore]":
    from qrhead_rag.ranking.byte_store import SqliteStore
    from qrhead_rag.ranking.passage_store import PassageStore

    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; expected a store that `qrhead encode` wrote")
    file = SqliteStore(path)
    return PassageStore(file), file
