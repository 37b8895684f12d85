"""The error messages, modes and criteria of the code are in the documents, and no message that is gone."""

import ast
import re

import pytest

from qrhead_rag.detect.choosing import CRITERIA
from tests.helpers.alone import ROOT
from tests.helpers.modes import MODES

ENTRIES = (ROOT / "docs" / "pages" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = [*sorted((ROOT / "qrhead_rag").rglob("*.py")), *sorted((ROOT / "integrations").rglob("*.py"))]


def template(node):
    """A text with … where a value is filled in; None for what is no text."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(template(part) or "…" for part in parts)
        case ast.Call(ast.Attribute(ast.Constant(str(text)), "format")):
            return re.sub(r"\{.*?\}", "…", text)
    return None


def raised():
    """The message of every exception that is raised with one, and where."""
    for file in PACKAGES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
            if called and getattr(node.exc.func, "id", "") != "AttributeError":  # of a module: Python's own words
                for message in filter(None, map(template, node.exc.args)):
                    yield message, f"{file.name}:{node.lineno}"


def texts():
    """Every text in the code: warnings, and messages that are put together before they are raised."""
    for file in PACKAGES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if text := template(node):
                yield text


def entries():
    return [line.strip("`") for line in ENTRIES.splitlines() if re.fullmatch(r"`[^`]+`", line)]


def letters(text):
    return sum(character.isalpha() for character in text)


def test_every_message_that_is_raised_has_an_entry():
    """A message that only puts a place before the words of another one has none of its own."""
    known = entries()
    missing = [
        f"{where}: {message}"
        for message, where in raised()
        if letters(message) > 10 and not any(entry in message for entry in known)
    ]
    assert missing == []


def test_every_entry_is_of_a_message():
    code = set(texts())
    assert [entry for entry in entries() if not any(entry in text for text in code)] == []
    assert len(entries()) > 100


def test_every_entry_says_what_to_do():
    terms = re.split(r"\n(?=:   )", ENTRIES)
    assert len(terms) > 70
    assert all(term.rstrip().endswith("`") for term in terms[:-1])


@pytest.mark.parametrize(
    "file",
    ["README.md", "CHANGELOG.md", "docs/pages/modes.md", "docs/pages/how-it-works.md", "docs/pages/finding-heads.md"],
)
def test_what_names_the_modes_names_each(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [mode for mode in MODES if f"`{mode}`" not in text and f"`@{mode}`" not in text] == []


def test_the_page_on_heads_has_every_criterion():
    page = (ROOT / "docs" / "pages" / "finding-heads.md").read_text(encoding="utf-8")
    assert [name for name in CRITERIA if not re.search(rf"^\| `{name}`", page, re.MULTILINE)] == []
