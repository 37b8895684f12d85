"""What the packages are made of: the core and the two integrations."""

import doctest
import importlib
import re
import tarfile
import tomllib
import zipfile

import pytest

from tests.helpers.alone import ROOT, build

INTEGRATIONS = ROOT / "integrations"
CONTENT = {
    "llama-index-postprocessor-qrhead": "llama_index/postprocessor/qrhead",
    "langchain-qrhead": "langchain_qrhead",
}


@pytest.mark.parametrize("name", CONTENT)
def test_the_wheel_holds_the_package_its_types_and_its_licence(name, tmp_path):
    files = set(zipfile.ZipFile(build(INTEGRATIONS / name, "wheel", tmp_path)).namelist())
    folder = CONTENT[name]
    expected = {path.name for path in (INTEGRATIONS / name / folder).iterdir() if path.suffix in (".py", ".typed")}
    assert {"__init__.py", "py.typed", "reranker.py"} <= expected
    packaged = {file for file in files if ".dist-info/" not in file}
    assert packaged == {f"{folder}/{file}" for file in expected}, "namespace packages have no __init__.py of their own"
    assert any(file.endswith("licenses/LICENSE") for file in files)


def test_the_wheel_of_the_core_holds_code_data_types_licence_and_command(tmp_path):
    with zipfile.ZipFile(build(ROOT, "wheel", tmp_path)) as wheel:
        files = set(wheel.namelist())
        (commands,) = (wheel.read(file).decode() for file in files if file.endswith("entry_points.txt"))
    source = ROOT / "qrhead_rag"
    expected = {str(path.relative_to(ROOT)) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {"qrhead_rag/py.typed", "qrhead_rag/data/head_sets.json", "qrhead_rag/data/handbook.jsonl"} <= expected
    assert {file for file in files if ".dist-info/" not in file} == expected
    assert any(file.endswith("licenses/LICENSE") for file in files)
    assert "qrhead = qrhead_rag.cli:app" in commands


@pytest.mark.parametrize("project", [ROOT, *(INTEGRATIONS / name for name in CONTENT)], ids=lambda path: path.name)
@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_is_the_same(project, tmp_path):
    names = {}
    for source in ("checkout", "sdist"):
        folder = tmp_path / source
        folder.mkdir()
        if source == "sdist":
            with tarfile.open(build(project, "sdist", tmp_path)) as sdist:
                safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
                sdist.extractall(tmp_path / "unpacked", **safely)
            (project,) = (tmp_path / "unpacked").iterdir()
            assert (project / "README.md").is_file()
            assert (project / "LICENSE").is_file()
        names[source] = zipfile.ZipFile(build(project, "wheel", folder)).namelist()
    assert sorted(names["sdist"]) == sorted(names["checkout"])


def test_the_hub_of_llama_index_finds_what_it_lists():
    project = tomllib.loads((INTEGRATIONS / "llama-index-postprocessor-qrhead" / "pyproject.toml").read_text("utf-8"))
    hub = project["tool"]["llamahub"]
    module = __import__(hub["import_path"], fromlist=["*"])
    assert set(hub["class_authors"]) == set(module.__all__)


@pytest.mark.parametrize("name", CONTENT)
def test_versions_and_requirements_go_with_the_core(name):
    core = tomllib.loads((INTEGRATIONS.parent / "pyproject.toml").read_text("utf-8"))["project"]
    own = tomllib.loads((INTEGRATIONS / name / "pyproject.toml").read_text("utf-8"))["project"]
    assert own["requires-python"] == core["requires-python"]
    assert own["license"] == core["license"]
    assert (INTEGRATIONS / name / "LICENSE").read_text("utf-8") == (INTEGRATIONS.parent / "LICENSE").read_text("utf-8")
    assert any(requirement.startswith("qrhead-rag>=") for requirement in own["dependencies"])


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.embedded
def test_the_readme_shows_what_its_code_prints(name, capsys):
    readme = (INTEGRATIONS / name / "README.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 3
    names = {}
    for code, output in examples:
        exec(code, names)
        assert capsys.readouterr().out == output


@pytest.mark.parametrize(
    "module",
    [
        "langchain_qrhead.messages",
        "langchain_qrhead.middleware",
        "langchain_qrhead.reranker",
        "langchain_qrhead.tokens",
        "llama_index.postprocessor.qrhead.memory",
        "llama_index.postprocessor.qrhead.own_text",
        "llama_index.postprocessor.qrhead.reranker",
    ],
)
def test_the_examples_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
