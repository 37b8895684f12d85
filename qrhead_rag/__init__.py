"""Rerank with a language model's own attention: query-focused retrieval heads on stock Hugging Face models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrhead_rag.encoded import EncodedPassages
    from qrhead_rag.examples import LabelledExample
    from qrhead_rag.heads import HeadSet
    from qrhead_rag.passage import Passage
    from qrhead_rag.ranking import RankedPassage, Ranking
    from qrhead_rag.retriever import QRRetriever

__version__ = "0.1.0"
__all__ = ["EncodedPassages", "HeadSet", "LabelledExample", "Passage", "QRRetriever", "RankedPassage", "Ranking"]

_FILES = {
    "EncodedPassages": "encoded",
    "HeadSet": "heads",
    "LabelledExample": "examples",
    "Passage": "passage",
    "QRRetriever": "retriever",
    "RankedPassage": "ranking",
    "Ranking": "ranking",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers, which take seconds, only where a name needs them (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
