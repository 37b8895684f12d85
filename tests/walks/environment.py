"""New environments that hold what an install path brings and nothing else, beside torch, which all of them share."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tests.helpers.alone import ROOT
from tests.walks.readme import Commands

_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_PINNED = ["-c", str(ROOT / "constraints.txt")]
_PROJECTS = [ROOT, *sorted(file.parent for file in ROOT.glob("integrations/*/pyproject.toml"))]


def build_wheels(folder: Path) -> dict[Path, Path]:
    """The wheel of each project of this tree, by the project's folder."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *map(str, _PROJECTS))
    wheels = {}
    for project in _PROJECTS:
        name = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["name"]
        (wheels[project],) = folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
    return wheels


def link_torch(folder: Path) -> None:
    """Links to torch, and to what its builds for GPUs require: gigabytes that no walk should fetch."""
    for distribution in metadata.distributions():
        if re.match("torch$|nvidia-|cuda-|triton$", distribution.name):
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(str(distribution.locate_file(top)))


class Environment:
    """A new environment with a home of its own, and a folder outside the repository to work in."""

    def __init__(self, folder: Path, torch: Path) -> None:
        self.work, self.home, self._bin = folder / "work", folder / "home", folder / "env" / "bin"
        self.work.mkdir()
        self.home.mkdir()
        venv.create(folder / "env", symlinks=True)
        (packages,) = folder.glob("env/lib/python*/site-packages")
        (packages / "torch.pth").write_text(f"{torch}\n")  # a folder on the path: pip counts torch as installed

    def install(self, commands: Commands, wheels: dict[Path, Path]) -> None:
        """Run the `pip install` commands of a path, with wheels for the folders that they name."""
        for arguments in commands:
            built = [_with_wheel(argument, wheels) for argument in arguments]
            _pip("--python", str(self._bin / "python"), "install", "--no-compile", *_PINNED, *built)

    def run(self, *command: str) -> str:
        """What a command of the environment prints; no variable of the surroundings reaches it."""
        program = self._bin / command[0]
        assert program.exists(), f"the environment has no command {command[0]}"
        variables = {
            "PATH": f"{self._bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "HF_HUB_OFFLINE": "1",
            "LANG": "C.UTF-8",
        }
        result = subprocess.run(
            [program, *command[1:]], cwd=self.work, env=variables, capture_output=True, encoding="utf-8", check=False
        )
        assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}"
        return result.stdout


def _with_wheel(argument: str, wheels: dict[Path, Path]) -> str:
    local = re.fullmatch(r"(\.[^\[]*)(\[.*\])?", argument)
    return f"{wheels[(ROOT / local[1]).resolve()]}{local[2] or ''}" if local else argument


def _pip(*arguments: str) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([*_PIP, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"pip {' '.join(arguments)} failed:\n{result.stdout}{result.stderr}"


def local_names(commands: Iterable[tuple[str, ...]]) -> list[str]:
    """What the commands name of this tree: ., ./integrations/..., with extras."""
    return [argument for arguments in commands for argument in arguments if argument.startswith(".")]
