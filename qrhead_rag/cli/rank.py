"""`qrhead rank`, `qrhead heads` and `qrhead demo`: one list ranked, the shipped head sets, the handbook."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import typer
from rich.console import Console
from rich.table import Table

from qrhead_rag.cli.options import (
    HeadsOption,
    InstructionOption,
    KeyDtypeOption,
    LayoutOption,
    ModelOptions,
    ModeOption,
    OptionalStoreOption,
    PieceOption,
    PruneOption,
    PruneTokensOption,
    ReadoutOption,
    SelectionOptions,
    expand_groups,
    without_none,
)
from qrhead_rag.cli.output import one_line_errors
from qrhead_rag.core.heads import HeadSet, shipped_head_sets
from qrhead_rag.show.ink import printable

if TYPE_CHECKING:
    from qrhead_rag.core.passage import Passage
    from qrhead_rag.datasets.passages import FileFormat
    from qrhead_rag.ranking.result import Ranking
    from qrhead_rag.ranking.retriever import QRRetriever

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@expand_groups
def rank(
    query: Annotated[str, typer.Argument(help="The question.")],
    file: Annotated[
        str, typer.Argument(help=".txt (a document a line), .jsonl or .json (text, title, id); - reads stdin.")
    ],
    *,
    file_format: Annotated[
        Literal["txt", "jsonl"] | None, typer.Option("--format", help="By default what the file's name says, else txt.")
    ] = None,
    model: ModelOptions,
    heads: HeadsOption = None,
    mode: ModeOption = None,
    readout: ReadoutOption = None,
    selection: SelectionOptions,
    prune: PruneOption = None,
    prune_tokens: PruneTokensOption = None,
    layout: LayoutOption = None,
    window: Annotated[
        int | None, typer.Option(help="Documents in a window, where a list is longer than the context (listwise).")
    ] = None,
    piece_tokens: PieceOption = None,
    key_dtype: KeyDtypeOption = None,
    store: OptionalStoreOption = None,
    instruction: InstructionOption = None,
    as_json: JsonOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each token contributed.")] = False,
) -> None:
    """Rank the documents of a file by the query's attention to them. Lines count from 1, with the blank ones."""
    with one_line_errors():
        to_keep = selection.validated()
        from qrhead_rag.core.pruning import Prune

        unpruned = prune is None and prune_tokens is None
        pruning = None if unpruned else Prune(min_share=prune, max_tokens=prune_tokens)
        content, name, read_as = _read(file, file_format)
        from qrhead_rag.core.passage import check_query
        from qrhead_rag.datasets.passages import parse_passages

        check_query(query)
        numbered = parse_passages(content, read_as, name)
        if not numbered:
            raise ValueError(f"{name} has no documents; expected at least one line of {read_as}")
        options = without_none(
            readout=readout,
            layout=layout,
            window=window,
            piece_tokens=piece_tokens,
            key_dtype=key_dtype,
            store=store,
            instruction=instruction,
        )
        retriever = model.load(heads, mode, **options)
        ranking = retriever.rank(query, [passage for _, passage in numbered], **to_keep.model_dump(), prune=pruning)
        lines = [line for line, _ in numbered]
        if as_json:
            typer.echo(json.dumps(_ranking_data(ranking, lines, retriever, explain), indent=1))
        else:
            _print_ranking(ranking, lines, explain)


def list_heads(
    model: Annotated[str | None, typer.Option(help="Only models whose name has this in it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the head sets that come with the package."""
    with one_line_errors():
        matching = [heads for heads in shipped_head_sets() if (model or "").casefold() in heads.model.casefold()]
        if not matching:
            raise ValueError(
                f"no head set is shipped for a model named like {model!r}; `qrhead heads` lists them all, "
                f"`qrhead detect --model {model}` finds heads on labelled examples"
            )
        if as_json:
            typer.echo(json.dumps([heads.model_dump(mode="json", exclude_none=True) for heads in matching], indent=1))
        else:
            _print_head_sets(matching)


@expand_groups
def demo(
    *,
    question: Annotated[str | None, typer.Option(help="Ask the handbook a question of your own.")] = None,
    model: ModelOptions,
    heads: HeadsOption = None,
    mode: ModeOption = None,
) -> None:
    """Rank a station's handbook for its questions, beside BM25, and show which tokens decided."""
    with one_line_errors():
        from qrhead_rag.demo import run

        run(lambda: model.load(heads, mode), Console(), question)


def _read(file: str, file_format: "FileFormat | None") -> "tuple[bytes, str, FileFormat]":
    """The content of a file, its name for messages, and its format."""
    if file == "-":
        return sys.stdin.buffer.read(), "stdin", file_format or "txt"
    path = Path(file)
    suffix = ".jsonl" if path.suffix == ".json" else path.suffix
    if file_format is None and suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{file}: unknown kind of file; expected .txt or .jsonl, or say --format txt|jsonl")
    return path.read_bytes(), file, file_format or cast("FileFormat", suffix[1:])


def _ranking_data(ranking: "Ranking", lines: list[int], retriever: "QRRetriever", explain: bool) -> dict[str, Any]:
    documents = []
    explained = ranking.explain() if explain else None
    for index, ranked in enumerate(ranking):
        passage = ranked.passage
        entry: dict[str, Any] = {
            "index": ranked.index,
            "line": lines[ranked.index],
            "score": ranked.score,
            "truncated": ranked.truncated,
            **passage.model_dump(exclude_none=True),
        }
        if ranked.kept is not None:
            entry |= {"kept": ranked.kept, "pruned": ranked.pruned}
        if explained:
            entry["tokens"] = [vars(token) for token in explained[index].tokens]
        documents.append(entry)
    return {
        "query": ranking.query,
        "model": retriever.model_name,
        "heads": retriever.heads.heads,
        "mode": ranking.mode,
        "readout": retriever.readout,
        "windowed": ranking.windowed,
        "evidence": ranking.evidence,
        "abstained": ranking.abstained,
        "documents": documents,
    }


def _print_ranking(ranking: "Ranking", lines: list[int], explain: bool) -> None:
    from qrhead_rag.show.terminal import shade_passage, strongest_tokens

    if ranking.abstained:
        typer.echo(f"nothing was found: the evidence of the list is {ranking.evidence:.4f}", err=True)
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("line", "score"):
        table.add_column(column, justify="right")
    named = any(ranked.passage.id is not None for ranked in ranking)
    if named:
        table.add_column("id", overflow="fold")
    table.add_column("document", no_wrap=True, overflow="ellipsis")
    for ranked in ranking:
        cells = [str(lines[ranked.index]), f"{ranked.score:.4f}"]
        cells += [printable(ranked.passage.id or "")] if named else []
        table.add_row(*cells, _opening(ranked.passage))
    console.print(table, markup=False)
    for ranked in ranking:
        if ranked.kept is not None:
            console.rule(f"line {lines[ranked.index]}, score {ranked.score:.4f}", align="left")
            title = f"{ranked.passage.title}\n" if ranked.passage.title else ""
            console.print(printable(f"{title}{ranked.pruned}"), markup=False, highlight=False)
    if explain:
        for passage in ranking.explain().passages:
            console.rule(f"line {lines[passage.index]}, score {passage.score:.4f}", align="left")
            console.print(shade_passage(passage))
            console.print(strongest_tokens(passage), style="dim", markup=False, highlight=False)


def _opening(passage: "Passage") -> str:
    """Title and beginning of a passage, on one line."""
    title = f"{passage.title}: " if passage.title else ""
    return " ".join(printable(f"{title}{passage.text[:300]}").split())


def _print_head_sets(head_sets: list[HeadSet]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True, overflow="fold")
    for column in ("set", "mode", "criterion"):
        table.add_column(column, overflow="fold")
    table.add_column("n", justify="right")  # short, so that 80 columns hold the longest row
    for heads in head_sets:
        mark = " **" if heads.recommended else " *" if heads.default else ""
        table.add_row(heads.model, f"{heads.name}{mark}", heads.mode, heads.criterion, str(len(heads.heads)))
    console = Console()
    console.print(table, markup=False)
    console.print("n heads; ** read by default, * default of its mode. --json adds heads, sources.", style="dim")
