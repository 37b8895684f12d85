"""Every notebook runs offline as committed, and a fresh run gives its committed key results."""

import re
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebooks.run import FOLDER, execute, key_result, notebook_files

MAX_CELLS = 14
FILES = notebook_files()
each_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@cache
def committed(file):
    return nbformat.read(file, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def same(fresh, kept):
    """Whether two JSON values are equal, floats within 5%."""
    if isinstance(kept, dict):
        return (
            isinstance(fresh, dict) and fresh.keys() == kept.keys() and all(same(fresh[key], kept[key]) for key in kept)
        )
    if isinstance(kept, list):
        return isinstance(fresh, list) and len(fresh) == len(kept) and all(map(same, fresh, kept))
    return type(fresh) is type(kept) and fresh == (pytest.approx(kept, rel=0.05) if isinstance(kept, float) else kept)


def tellings_of_a_machine(notebook):
    """Absolute paths and addresses of memory in the outputs."""
    contents = [text for output in outputs(notebook) for text in texts(output)]
    pattern = (
        r"(?<![\w.:/<&;])/(?:home|root|tmp|usr|work|var|opt|mnt|Users|private)/[\w./-]*|[A-Z]:\\\w+|\b0x[0-9a-f]{8,}"
    )
    return [match.group() for text in contents for match in re.finditer(pattern, text)]


def texts(output):
    if output.output_type == "stream":
        return [output.text]
    return [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]


def check_outputs(notebook):
    bad = [output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"]
    assert not bad
    assert not any("widget-view" in kind for output in outputs(notebook) for kind in output.get("data", {}))
    assert tellings_of_a_machine(notebook) == []


def test_the_index_names_the_notebooks_there_are():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[(\w+)\]\((\w+\.ipynb)\)", index, re.MULTILINE)
    assert [link for _, link in named] == [file.name for file in FILES]
    assert [name for name, _ in named] == [file.stem for file in FILES]


@each_notebook
def test_a_notebook_is_short_and_committed_as_run(file):
    notebook = committed(file)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= MAX_CELLS
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    ran = [cell.execution_count for cell in code_cells(notebook)]
    assert ran == list(range(1, len(ran) + 1))
    assert key_result(notebook)
    check_outputs(notebook)


@pytest.mark.notebook
@each_notebook
def test_a_fresh_run_gives_the_committed_key_result(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = file.read_bytes()
    fresh = execute(file)
    result, expected = key_result(fresh), key_result(committed(file))
    assert same(result, expected), f"found {result}; the notebook has {expected}"
    assert [bool(cell.outputs) for cell in code_cells(fresh)] == [
        bool(cell.outputs) for cell in code_cells(committed(file))
    ]
    check_outputs(fresh)
    assert file.read_bytes() == before


def small_notebook(*sources):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[-1].metadata["tags"] = ["key-result"]
    return notebook


@pytest.mark.notebook
def test_a_run_uses_this_interpreter_offline_in_a_folder_of_its_own(tmp_path):
    file = tmp_path / "small.ipynb"
    source = "import json, os, sys\nprint(json.dumps([sys.executable, os.environ['HF_HUB_OFFLINE'], os.getcwd()]))"
    nbformat.write(small_notebook(source), file)
    executable, offline, folder = key_result(execute(file))
    assert (executable, offline) == (sys.executable, "1")
    assert Path(folder) not in (tmp_path, Path.cwd())


@pytest.mark.notebook
def test_a_failing_cell_fails_the_run(tmp_path):
    file = tmp_path / "small.ipynb"
    nbformat.write(small_notebook("1 / 0", "print(1)"), file)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(file)


def test_a_cell_may_take_as_long_as_it_likes(tmp_path, monkeypatch):
    file = tmp_path / "small.ipynb"
    nbformat.write(small_notebook("print(1)"), file)
    made = []
    monkeypatch.setattr(NotebookClient, "execute", lambda self, **_: made.append(self))
    execute(file)
    assert made[0].timeout is None
    assert min(made[0].startup_timeout, made[0].iopub_timeout) >= 300


def test_a_changed_key_result_is_seen():
    result = {"best": "crossing", "places": [4, 1], "share": 0.41, "kept": True}
    assert same(result | {"share": 0.42}, result)
    for other in ({"best": "meals"}, {"places": [4, 2]}, {"share": 0.5}, {"kept": False}, {"places": [4]}, {"new": 1}):
        assert not same(result | other, result)


@pytest.mark.parametrize("text", ["in /home/me/x.py", "at 'C:\\Users'", "<QRRetriever object at 0x7f3a12345678>"])
def test_what_only_one_machine_says_is_seen(text):
    notebook = small_notebook("1")
    assert tellings_of_a_machine(notebook) == []
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    assert tellings_of_a_machine(notebook)


def test_a_notebook_without_key_result_is_refused():
    notebook = small_notebook("print(1)")
    notebook.cells[0].metadata = {}
    with pytest.raises(ValueError, match="0 cells with the tag key-result"):
        key_result(notebook)


def test_a_key_result_that_is_no_json_is_refused():
    notebook = small_notebook("print(1)")
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="{}\nten\n")]
    with pytest.raises(ValueError, match="'ten'; expected JSON"):
        key_result(notebook)
