"""Fixtures that several test files share."""

import os

# Nothing in the suite may wait for a hub: set before transformers is imported anywhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from qrhead_rag import QRRetriever
from tests.helpers.tiny import tiny_model, tiny_tokenizer

_THREADS = torch.get_num_threads()

# No test may fail because a machine is slow.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that take the embedded model from a fixture: `make quick` leaves them out."""
    for item in items:
        if any(name.startswith("embedded") for name in getattr(item, "fixturenames", ())):
            item.add_marker("embedded")


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    """Tiny models run on one thread: waiting for a second one takes a hundred times longer than their arithmetic."""
    torch.set_num_threads(_THREADS if request.node.get_closest_marker("embedded") else 1)


@pytest.fixture(scope="session")
def embedded_all() -> QRRetriever:
    """The embedded model at full depth, every head read in the published mode; loaded once a session."""
    return QRRetriever.from_pretrained(heads="all", mode="listwise", device="cpu")


@pytest.fixture(scope="session")
def embedded(embedded_all: QRRetriever) -> QRRetriever:
    """The embedded model as users get it, with its recommended heads and mode, on the same weights."""
    return QRRetriever(embedded_all.model, embedded_all.tokenizer, model_name=embedded_all.model_name)


@pytest.fixture
def tiny() -> QRRetriever:
    """A random four-layer model that reads four heads."""
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (1, 3), (2, 1), (2, 2)])
