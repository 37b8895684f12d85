"""What the tests of the command share."""

import pytest

from tests.helpers.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk, as `--model` takes it."""
    return str(save_tiny(tmp_path_factory.mktemp("tiny-model")))
