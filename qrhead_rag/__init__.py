"""Rerank with a language model's own attention: query-focused retrieval heads on stock Hugging Face models."""

from qrhead_rag.heads import HeadSet
from qrhead_rag.prompt import Passage
from qrhead_rag.ranking import RankedPassage, Ranking
from qrhead_rag.retriever import QRRetriever

__version__ = "0.1.0"
__all__ = ["HeadSet", "Passage", "QRRetriever", "RankedPassage", "Ranking"]
