"""What the two integration packages are made of."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

INTEGRATIONS = Path(__file__).parent.parent / "integrations"
CONTENT = {
    "llama-index-postprocessor-qrhead": "llama_index/postprocessor/qrhead",
    "langchain-qrhead": "langchain_qrhead",
}


@pytest.mark.parametrize("name", CONTENT)
def test_the_wheel_holds_the_package_its_types_and_its_licence(name, tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=INTEGRATIONS / name, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    folder = CONTENT[name]
    expected = {path.name for path in (INTEGRATIONS / name / folder).iterdir() if path.suffix in (".py", ".typed")}
    assert {"__init__.py", "py.typed", "reranker.py"} <= expected
    packaged = {file for file in files if ".dist-info/" not in file}
    assert packaged == {f"{folder}/{file}" for file in expected}, "namespace packages have no __init__.py of their own"
    assert any(file.endswith("licenses/LICENSE") for file in files)


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
def test_the_readme_shows_what_its_code_prints(name, capsys):
    readme = (INTEGRATIONS / name / "README.md").read_text("utf-8")
    shown = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", readme, re.DOTALL)
    assert len(shown) == 2
    names = {}
    for code, output in shown:
        exec(code, names)
        assert capsys.readouterr().out == output
