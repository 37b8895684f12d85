"""The core stands alone: without any optional package it imports and ranks, and help needs no torch."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import qrhead_rag

ROOT = Path(qrhead_rag.__file__).parent.parent
OPTIONAL = ["bm25s", "matplotlib", "ir_measures", "pytrec_eval", "scipy", "llama_index", "langchain_core", "ray"]
MODULES = sorted(module.name for module in pkgutil.iter_modules([str(ROOT / "qrhead_rag")]))
# Every finder is asked, and says what it would say if these packages were not installed: others may ask it too.
BLOCKER = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {OPTIONAL!r}
        return None if absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_every_file_imports_and_a_list_is_ranked_without_optional_packages():
    code = f"""{BLOCKER}
import importlib
for name in {MODULES!r}:
    importlib.import_module(f"qrhead_rag.{{name}}")
import qrhead_rag
for name in qrhead_rag.__all__:
    getattr(qrhead_rag, name)
from tests.tiny import tiny_model, tiny_tokenizer
for mode in ("listwise", "independent", "late"):
    retriever = qrhead_rag.QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode)
    ranking = retriever.rank("which ship", ["a ship", "a lamp", ""], top_n=2)
    ranking.explain()
    print(mode, len(ranking))
loaded = [name for name in {OPTIONAL!r} if name in sys.modules]
print("loaded", loaded)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["listwise 2", "independent 2", "late 2", "loaded []"]


def test_the_blocker_blocks():
    result = run(f"{BLOCKER}\nimport bm25s")
    assert result.returncode == 1
    assert "No module named 'bm25s'" in result.stderr


@pytest.mark.parametrize("extra", ["bm25s", "matplotlib"])
def test_a_missing_extra_is_named_with_its_command(extra):
    use = {
        "bm25s": "from qrhead_rag.first_stage import BM25; BM25(['a ship'])",
        "matplotlib": "from qrhead_rag.first_stage import require_extra; require_extra('matplotlib', 'plot')",
    }[extra]
    result = run(f"{BLOCKER}\n{use}")
    assert result.returncode == 1
    name = {"bm25s": "eval", "matplotlib": "plot"}[extra]
    assert f"{extra} is missing; install it with: pip install 'qrhead-rag[{name}]'" in result.stderr


def test_no_file_imports_numpy():
    """numpy comes with transformers; the core's arithmetic is torch's."""
    found = []
    for file in sorted((ROOT / "qrhead_rag").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.name}:{node.lineno}" for name in names if name.partition(".")[0] == "numpy"]
    assert found == []


def test_the_command_and_head_sets_need_no_torch():
    code = "import sys, qrhead_rag.cli, qrhead_rag.heads; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    assert run(code).stdout == "[]\n"


def test_the_public_names_are_those_listed():
    assert sorted(qrhead_rag.__all__) == qrhead_rag.__all__
    assert set(qrhead_rag.__all__) <= set(dir(qrhead_rag))
    assert qrhead_rag.HeadSet.__module__ == "qrhead_rag.heads"
    with pytest.raises(AttributeError, match="no attribute 'Retriever'"):
        _ = qrhead_rag.Retriever
