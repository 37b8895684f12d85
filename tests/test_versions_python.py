"""Newer Pythons read every file, and have every name of the standard library that the packages use."""

import os
import subprocess
import tomllib

import pytest

from tests.helpers.alone import ROOT

PYTHONS = ["3.12", "3.13"]
READ = f"""
import ast, sys, warnings
from pathlib import Path

warnings.simplefilter("error")
root, packages = Path({str(ROOT)!r}), ("qrhead_rag", "integrations")
files = names = 0
for folder in (*packages, "tests", "benchmarks", "notebooks"):
    for file in sorted((root / folder).rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"), str(file))
        compile(tree, str(file), "exec")
        files += 1
        for node in ast.walk(tree) if folder in packages else ():
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            if modules and all(module.partition(".")[0] in sys.stdlib_module_names for module in modules):
                exec(ast.unparse(node), {{}})
                names += len(node.names)
print(*sys.version_info[:2], files, names)
"""


def run(version, code):
    """What a newer Python, installed or kept by pyenv, says to some code."""
    environment = os.environ | {"PYENV_VERSION": version}
    try:
        subprocess.run([f"python{version}", "--version"], env=environment, capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip(f"no python{version} is installed")
    command = [f"python{version}", "-I", "-B", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.slow
def test_every_file_is_read_without_a_warning(version):
    result = run(version, READ)
    assert result.returncode == 0, result.stdout + result.stderr
    major, minor, files, names = map(int, result.stdout.split())
    assert f"{major}.{minor}" == version
    assert files > 80
    assert names > 100


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.slow
def test_what_is_gone_or_warned_of_is_seen(version):
    code = """
import warnings
warnings.simplefilter("error")
seen = []
for line in ("import imp", "print 1", r"'\\d'"):
    try:
        exec(line)
    except (ImportError, SyntaxError) as error:
        seen.append(type(error).__name__)
print(*seen)
"""
    assert run(version, code).stdout.split() == ["ModuleNotFoundError", "SyntaxError", "SyntaxError"]


def test_the_versions_are_those_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert declared == ["3.11", *PYTHONS]
    assert project["requires-python"] == f">={declared[0]}"
