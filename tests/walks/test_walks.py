"""Every install path that a README names, walked as a user walks it: a new environment, an empty cache, no network.

A walk fails where a package imports what it does not declare, where a wheel lacks a file, and where a snippet needs more
than its README installs.
"""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.helpers.alone import ROOT
from tests.helpers.outputs import assert_same_output
from tests.walks.environment import Environment, build_wheels, link_torch, local_names
from tests.walks.readme import READMES, Commands, Snippet, frameworks, install_paths, snippets

TEXTS = [readme.read_text(encoding="utf-8") for readme in READMES]
PATHS = list(dict.fromkeys(path for text in TEXTS for path in install_paths(text)))
SNIPPETS = [snippet for text in TEXTS for snippet in snippets(text)]
RUN_EACH = "import runpy, sys\nfor file in sys.argv[1:]:\n    runpy.run_path(file, run_name='__main__')"
DOCUMENTS = ["The ferry leaves at nine.", "The library lends maps for a week.", "Keys hang behind the door."]


def path_frameworks(path: Commands) -> frozenset[str]:
    return frameworks(local_names(path))


def path_name(path: Commands) -> str:
    return " ".join(name.rpartition("/")[2] for name in local_names(path))


def snippets_of(path: Commands) -> list[Snippet]:
    return [snippet for snippet in SNIPPETS if snippet.frameworks == path_frameworks(path)]


@pytest.fixture(scope="module")
def new_environment() -> Iterator[Callable[[Commands], Environment]]:
    """Makes environments; each is gone before the next one is made."""
    with TemporaryDirectory(prefix="walks-") as folder:
        wheels, torch = Path(folder, "wheels"), Path(folder, "torch")
        torch.mkdir()
        link_torch(torch)
        built = build_wheels(wheels)
        left: list[TemporaryDirectory[str]] = []

        def make(path: Commands) -> Environment:
            while left:
                left.pop().cleanup()
            left.append(TemporaryDirectory(dir=folder))
            environment = Environment(Path(left[0].name), torch)
            environment.install(path, built)
            return environment

        yield make


@pytest.mark.walk
@pytest.mark.parametrize("path", PATHS, ids=path_name)
def test_an_install_path_gives_what_the_readme_shows(path: Commands, new_environment) -> None:
    environment = new_environment(path)
    run_snippets(environment, snippets_of(path))
    assert list(environment.home.glob("cache/qrhead-rag/*/model.safetensors")), "the embedded model was not used"
    if not path_frameworks(path):
        rank_a_file(environment)
    if any("[eval]" in name for name in local_names(path)):
        assert "QRHead right passage first: " in environment.run("qrhead", "demo")


def run_snippets(environment: Environment, chosen: list[Snippet]) -> None:
    """Run each snippet as a file of its own; of the ones that only illustrate, the imports."""
    assert any(snippet.runs for snippet in chosen)
    files = []
    for number, snippet in enumerate(chosen):
        files.append(f"snippet_{number}.py")
        (environment.work / files[-1]).write_text(snippet.code if snippet.runs else snippet.imports, encoding="utf-8")
    printed = environment.run("python", "-c", RUN_EACH, *files)
    assert_same_output(printed, "".join(snippet.output or "" for snippet in chosen if snippet.runs))


def rank_a_file(environment: Environment) -> None:
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(DOCUMENTS)]
    (environment.work / "documents.jsonl").write_text("\n".join(lines), encoding="utf-8")
    printed = environment.run("qrhead", "rank", "How long may I borrow a map?", "documents.jsonl", "--json")
    assert json.loads(printed)["documents"][0]["id"] == "1"


def test_every_readme_names_install_paths_and_every_snippet_belongs_to_one() -> None:
    for readme, text in zip(READMES, TEXTS, strict=True):
        assert install_paths(text), f"{readme.relative_to(ROOT)} has no block of pip install under ## Install"
    assert {snippet.frameworks for snippet in SNIPPETS} == set(map(path_frameworks, PATHS))
    assert all(snippet.output for snippet in SNIPPETS if snippet.runs)


def test_paths_lead_through_this_tree() -> None:
    """A name of ours would be looked for on the index, where it may be somebody else's."""
    for path in PATHS:
        assert local_names(path)
        assert not any("qrhead" in argument and not argument.startswith(".") for line in path for argument in line)


def test_make_demo_installs_a_path_of_the_readme() -> None:
    command = ["make", "-n", "-B", ".venv/.demo-ready"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [
        shlex.split(line.partition("constraints.txt ")[2]) for line in printed.splitlines() if "pip install" in line
    ]
    commands = tuple(tuple(word for word in line if word != "-e") for line in lines)
    assert commands[0][0].startswith("torch==")
    assert commands[1:] in PATHS


README = """
# A project

    make demo

## Install

Words, and ``pip install none``.

```sh
pip install .  # a comment
pip install --no-deps model==0.1
```

With extras:

```sh
pip install '.[eval]' './integrations/langchain-qrhead[agents]' other
```

## Use

```sh
pip install later
```

```python
import json
from langchain_core.documents import Document
print(1)
```

```text
1
```
```py
from llama_index.core import nothing
nothing(names)
```
"""


def test_install_blocks_and_snippets_are_read() -> None:
    core, extras = install_paths(README)
    assert core == ((".",), ("--no-deps", "model==0.1"))
    assert extras == ((".[eval]", "./integrations/langchain-qrhead[agents]", "other"),)
    assert path_name(extras) == ".[eval] langchain-qrhead[agents]"
    assert path_frameworks(core) == frozenset()
    assert path_frameworks(extras) == {"LangChain"}
    run, illustration = snippets(README)
    assert (run.runs, run.output, run.frameworks) == (True, "1\n", {"LangChain"})
    assert (illustration.runs, illustration.output) == (False, None)
    assert illustration.imports == "from llama_index.core import nothing"
    with pytest.raises(ValueError, match="has the line 'make x'; expected pip install"):
        install_paths("## Install\n```sh\nmake x\n```\n")
