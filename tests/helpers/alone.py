"""A place where the core is installed alone: what `pip install qrhead-rag` brings, and nothing else.

Nothing is fetched. The wheel of the core is built and unpacked; everything that its metadata requires, and what that
requires in turn, is linked from the running environment.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def build(project: Path, kind: str, folder: Path) -> Path:
    """The wheel or sdist of a project."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def required(lines: Iterable[str], extras: Iterable[str] = ()) -> dict[str, Requirement]:
    """Requirements that hold here, by normalized name."""
    requirements = {}
    for requirement in map(Requirement, lines):
        markers = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, markers)):
            requirements[normalized(requirement.name)] = requirement
    return requirements


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install_alone(folder: Path) -> None:
    """Lay the core and its requirements into a folder."""
    wheel = build(ROOT, "wheel", folder)
    zipfile.ZipFile(wheel).extractall(folder)
    wheel.unlink()
    (own,) = folder.glob("*.dist-info")
    waiting, seen = required(metadata.Distribution.at(own).requires or ()), set()
    while waiting:
        name, requirement = waiting.popitem()
        if name not in seen:
            seen.add(name)
            distribution = metadata.distribution(name)
            _link(distribution, folder)
            waiting |= required(distribution.requires or (), requirement.extras)


def _link(distribution: metadata.Distribution, folder: Path) -> None:
    for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        link, source = folder / top, Path(str(distribution.locate_file(top)))
        if source.exists() and not link.exists():
            link.symlink_to(source)


def run_alone(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where the folder is all there is beside the standard library; the tests themselves come last."""
    code = f"import sys; sys.path += [{str(folder)!r}, {str(ROOT)!r}]\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
