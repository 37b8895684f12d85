"""Fixtures that several test files share."""

import os

# Nothing in the suite may wait for a hub: set before transformers is imported anywhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from qrhead_rag import QRRetriever
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def embedded_all() -> QRRetriever:
    """The embedded model at full depth, every head read; loaded once a session."""
    return QRRetriever.from_pretrained(heads="all", device="cpu")


@pytest.fixture(scope="session")
def embedded(embedded_all: QRRetriever) -> QRRetriever:
    """The embedded model with its shipped heads, on the same weights."""
    return QRRetriever(embedded_all.model, embedded_all.tokenizer, model_name=embedded_all.model_name)


@pytest.fixture
def tiny() -> QRRetriever:
    """A random four-layer model that reads four heads."""
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (1, 3), (2, 1), (2, 2)])
