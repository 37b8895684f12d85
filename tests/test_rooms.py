"""Every file stands in a room of CONTRIBUTING's table and imports only from the rooms that the table allows."""

import ast
import graphlib
import re

import pytest

from tests.helpers.alone import ROOT

PACKAGE = ROOT / "qrhead_rag"
ROWS = re.findall(r"^\| `([\w/.]+)` \|.*\|([\w ]*)\|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
ALLOWED = {re.sub(r"/|\.py", "", room): set(may.split()) for room, may in ROWS}
FILES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(file):
    """Modules of the package that a file imports, also within functions and for types alone."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES or f"{name}.__init__" in FILES else str(node.module) for name in names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "qrhead_rag")


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_the_table_has_a_row_for_every_room_and_no_other():
    rooms = [file for file in PACKAGE.iterdir() if file.suffix == ".py" or list(file.glob("*.py"))]
    assert ALLOWED.keys() == {file.stem for file in rooms} - {"__init__"}
    assert len(ROWS) == len(ALLOWED)
    assert {name for allowed in ALLOWED.values() for name in allowed} <= ALLOWED.keys()


DRAWN_BY_THEMSELVES = {  # a notebook asks them to
    ("qrhead_rag.ranking.result", "qrhead_rag.show.html"),
    ("qrhead_rag.ranking.explanation", "qrhead_rag.show.html"),
}
FOUND_BY_THEMSELVES = {  # heads: a model without a shipped set asks for them
    ("qrhead_rag.ranking.retriever", "qrhead_rag.detect.first_use"),
    ("qrhead_rag.frameworks.rerank", "qrhead_rag.detect.finding"),
}


def test_tests_stand_in_the_same_rooms():
    folders = {file.name for file in (ROOT / "tests").iterdir() if list(file.glob("*.py"))}
    assert folders <= ALLOWED.keys() | {"helpers", "integrations", "walks"}


def test_a_room_imports_only_from_the_rooms_that_its_row_allows():
    against = {
        (module, target)
        for module, file in FILES.items()
        for target in imported(file)
        if room(module) in ALLOWED and room(target) not in {room(module), "__init__", *ALLOWED[room(module)]}
    }
    assert against == DRAWN_BY_THEMSELVES | FOUND_BY_THEMSELVES


def test_neither_rooms_nor_files_import_in_circles():
    files = {module: set(imported(file)) for module, file in FILES.items()}
    for module, target in DRAWN_BY_THEMSELVES | FOUND_BY_THEMSELVES:
        files[module].remove(target)
    assert list(graphlib.TopologicalSorter(ALLOWED).static_order())[-1] == "cli"
    assert set(graphlib.TopologicalSorter(files).static_order()) >= files.keys()


@pytest.mark.parametrize(
    "file", sorted((ROOT / "integrations").rglob("*.py")), ids=lambda file: file.parent.name + "." + file.stem
)
def test_an_integration_enters_by_the_frameworks_room(file):
    assert {room(module) for module in imported(file)} <= {"__init__", "frameworks"}
