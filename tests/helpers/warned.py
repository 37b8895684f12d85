"""Warnings that a call gave, without those of the garbage collector, which come whenever it runs."""

from collections.abc import Iterable
from warnings import WarningMessage


def warnings_of_call(caught: Iterable[WarningMessage]) -> list[WarningMessage]:
    """What `pytest.warns` recorded, less resources of earlier tests that were collected meanwhile."""
    return [warning for warning in caught if not issubclass(warning.category, ResourceWarning)]
