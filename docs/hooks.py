"""What the pages do not hold themselves: parts of the README files, and the command's help.

A line `{include FILE}` or `{include FILE#Heading}` stands for a Markdown file of the repository, or for what it has
under a heading of the second level ("top" is what stands before the first of them); a file of Python stands there as
code. `{command}` stands for the help of `qrhead`. A heading that is gone ends the build.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[1]
PAGES = "docs/pages"
PICTURE = "notebooks/explanation.png"
# Where the text of a file of the repository stands in the documentation; a link to any other keeps its words alone.
PAGE_OF = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "integrations/langchain-qrhead/README.md": "langchain.md",
    "integrations/llama-index-postprocessor-qrhead/README.md": "llama-index.md",
    "benchmarks/reports/README.md": "quality.md",
    "benchmarks/reports/choices.md": "quality.md",
    "benchmarks/reports/pieces.md": "quality.md",
    "benchmarks/reports/scifact.md": "quality.md",
    "benchmarks/reports/abstain.md": "abstain.md",
    "benchmarks/reports/sentences.md": "pruning.md",
    PICTURE: "explanation.png",
}
# What the README says of a thing and a page of its own shows.
PAGE_OF_SECTION = {"README.md#options": "options.md", "README.md#encode-once": "store.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README's picture, which lies beside the notebooks."""
    files.append(File.generated(config, PAGE_OF[PICTURE], abs_src_path=str(ROOT / PICTURE)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page includes."""
    markdown = re.sub(r"^\{include ([^#}]+)(?:#([^}]+))?\}$", _included, markdown, flags=re.MULTILINE)
    return re.sub(r"^\{command\}$", lambda _: _command(), markdown, flags=re.MULTILINE)


def _included(match: re.Match[str]) -> str:
    file, heading = match[1], match[2]
    content = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".py"):
        return f"```python\n{content}```"
    title, *sections = re.split(r"^## ", content, flags=re.MULTILINE)
    parts = {"top": title.partition("\n")[2]}  # without the title: a page has its own
    parts |= {name.strip(): text for name, _, text in (section.partition("\n") for section in sections)}
    if heading is None:
        text = parts.pop("top") + "".join(f"## {name}\n{text}" for name, text in parts.items())
    elif heading in parts:
        text = parts[heading]
    else:
        raise PluginError(f"{file} has no heading {heading!r}; found {', '.join(parts)}")
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", lambda link: _link(link, file), text)


def _link(link: re.Match[str], file: str) -> str:
    """A link of a file of the repository, as the page that includes the file has to write it."""
    picture, words, target = link[1], link[2], link[3]
    if target.startswith(("http://", "https://", "#")):
        return link[0]
    path, _, anchor = target.partition("#")
    path = normpath((PurePosixPath(file).parent / path).as_posix())
    if path.startswith(f"{PAGES}/"):
        page: str | None = relpath(path, PAGES)
    else:
        page = PAGE_OF_SECTION.get(f"{path}#{anchor}") or PAGE_OF.get(path)
    return words if page is None else f"{picture}[{words}]({page})"


def _command() -> str:
    """The help of `qrhead` and its commands, from the program itself."""
    from qrhead_rag.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="qrhead"), name="qrhead")
    return text.partition("\n")[2]  # without the title
