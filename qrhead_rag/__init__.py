"""Rerank with a language model's own attention: query-focused retrieval heads on stock Hugging Face models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrhead_rag.core.heads import HeadSet
    from qrhead_rag.core.passage import Passage
    from qrhead_rag.core.pruning import Prune
    from qrhead_rag.datasets.examples import LabelledExample
    from qrhead_rag.detect.finding import find_heads
    from qrhead_rag.ranking.encoded import EncodedPassages
    from qrhead_rag.ranking.passage_store import PassageStore
    from qrhead_rag.ranking.result import RankedPassage, Ranking
    from qrhead_rag.ranking.retriever import QRRetriever

__version__ = "0.1.0"
__all__ = [
    "EncodedPassages",
    "HeadSet",
    "LabelledExample",
    "Passage",
    "PassageStore",
    "Prune",
    "QRRetriever",
    "RankedPassage",
    "Ranking",
    "find_heads",
]

_FILES = {
    "EncodedPassages": "ranking.encoded",
    "HeadSet": "core.heads",
    "LabelledExample": "datasets.examples",
    "Passage": "core.passage",
    "PassageStore": "ranking.passage_store",
    "Prune": "core.pruning",
    "QRRetriever": "ranking.retriever",
    "RankedPassage": "ranking.result",
    "Ranking": "ranking.result",
    "find_heads": "detect.finding",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers, which take seconds, only where a name needs them (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
