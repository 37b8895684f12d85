"""The declared ranges are those that pass: the oldest versions (`make versions`), the newest, and newer Pythons."""

import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.alone import ROOT, normalized, required

OLDEST = ROOT / ".venv" / "oldest"
PROJECTS = [ROOT, *sorted((ROOT / "integrations").iterdir())]
EXTRAS = ("eval", "plot", "agents")
# Only one copy of torch is installed for the tests.
NOT_LAID = {"torch"}


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]


def declared():
    """Every requirement of the three projects on others, extras for users included."""
    for folder in PROJECTS:
        table = project(folder)
        lines = [
            *table["dependencies"],
            *(x for extra in EXTRAS for x in table.get("optional-dependencies", {}).get(extra, [])),
        ]
        yield from (Requirement(line) for line in lines if not line.startswith("qrhead-rag"))


def pins(file):
    lines = (line for line in (ROOT / file).read_text("utf-8").splitlines() if line and not line.startswith("#"))
    return {normalized(name): Version(version) for name, version in (line.split("==") for line in lines)}


def lower_bound(requirement):
    (oldest,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
    return Version(oldest)


def test_every_lower_bound_is_a_version_that_is_tested():
    oldest = pins("constraints-oldest.txt")
    bounds = {normalized(requirement.name): lower_bound(requirement) for requirement in declared()}
    assert {name: bound for name, bound in bounds.items() if name not in NOT_LAID} == {
        name: oldest[name] for name in bounds if name not in NOT_LAID
    }


def test_the_newest_versions_are_within_the_declared_ranges():
    newest = pins("constraints.txt")
    for requirement in declared():
        assert newest[normalized(requirement.name)] in requirement.specifier, requirement


def test_what_is_installed_is_what_is_pinned():
    laid = str(OLDEST) in sys.path
    expected = pins("constraints.txt") | (pins("constraints-oldest.txt") if laid else {})
    names = {normalized(requirement.name) for requirement in declared()}
    installed = {name: Version(metadata.version(name).partition("+")[0]) for name in names}
    assert installed == {name: expected[name] for name in names}


def test_everything_installed_has_what_it_requires():
    waiting = {normalized(requirement.name): requirement for requirement in declared()}
    seen = set()
    while waiting:
        name, requirement = waiting.popitem()
        if name not in seen:
            seen.add(name)
            for needed in required(metadata.requires(name) or (), requirement.extras).values():
                version = metadata.version(needed.name)
                assert needed.specifier.contains(version, prereleases=True), (
                    f"{name} requires {needed}, found {version}"
                )
                waiting[normalized(needed.name)] = needed
    assert len(seen) > len(set(declared()))
