"""What the READMEs tell a user to install and to run, read from their fenced blocks."""

import ast
import re
import shlex
from dataclasses import dataclass

from tests.helpers.alone import ROOT

READMES = [ROOT / "README.md", *sorted(ROOT.glob("integrations/*/README.md"))]
_FRAMEWORKS = {"llama": "LlamaIndex", "langchain": "LangChain"}

Commands = tuple[tuple[str, ...], ...]
"""The arguments of each `pip install`, one path to an environment."""


def install_paths(text: str) -> list[Commands]:
    """Each ```sh block under `## Install` is one path: `pip install` on every line."""
    section = re.search(r"^## Install\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL) if section else []
    return [tuple(_arguments(line) for line in block.splitlines() if line.strip()) for block in blocks]


def _arguments(line: str) -> tuple[str, ...]:
    words = shlex.split(line, comments=True)
    if words[:2] != ["pip", "install"]:
        raise ValueError(f"an install block has the line {line!r}; expected pip install ...")
    return tuple(words[2:])


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python.

    Attributes:
        code: its text.
        output: the text block that follows it, which is what it prints; None where there is none.
        runs: whether it runs as it stands (```python), or only its imports do (```py).
    """

    code: str
    output: str | None
    runs: bool

    @property
    def imports(self) -> str:
        """Its import statements."""
        nodes = ast.walk(ast.parse(self.code))
        return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))

    @property
    def frameworks(self) -> frozenset[str]:
        """The frameworks that it imports from."""
        return frameworks(re.findall(r"^(?:from|import) (\w+)", self.imports, re.MULTILINE))


def snippets(text: str) -> list[Snippet]:
    """The blocks of Python, in the order of the text."""
    pattern = r"^```(python|py)\n(.*?)^```\n(?:\n?^```(?:text)?\n(.*?)^```)?"
    blocks = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return [Snippet(code, output or None, runs=kind == "python") for kind, code, output in blocks]


def frameworks(names: list[str]) -> frozenset[str]:
    """The frameworks that names of packages or modules belong to."""
    return frozenset(value for key, value in _FRAMEWORKS.items() if any(key in name for name in names))
