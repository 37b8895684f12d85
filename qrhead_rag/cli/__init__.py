"""The `qrhead` command: rank a file of passages, list head sets, show the demo, find heads and evaluate them,
calibrate when nothing was found, rank and encode data sets.

torch and transformers are imported by the commands that need them, so that help comes at once.
"""

from typing import Annotated

import typer

from qrhead_rag import __version__
from qrhead_rag.cli import calibrate, cluster, detect, evaluate, rank, store
from qrhead_rag.cli.output import replace_unencodable

app = typer.Typer(
    name="qrhead",
    help="Rerank with a language model's own attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(detect.detect)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(store.encode)
app.add_typer(store.app, name="store")
app.command()(cluster.rank_dataset)
app.command()(cluster.encode_dataset)
app.command()(rank.rank)
app.command("heads")(rank.list_heads)
app.command()(rank.demo)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    replace_unencodable()
    if version:
        typer.echo(f"qrhead {__version__}")
        raise typer.Exit
