"""Rerank documents and trim messages in LangChain by a language model's own attention."""

from typing import TYPE_CHECKING, Any

from langchain_qrhead.encoder import QRHeadEncoder
from langchain_qrhead.messages import trim_messages_by_relevance
from langchain_qrhead.reranker import QRHeadReranker

if TYPE_CHECKING:
    from langchain_qrhead.middleware import QRHeadMemoryMiddleware

__all__ = ["QRHeadEncoder", "QRHeadMemoryMiddleware", "QRHeadReranker", "trim_messages_by_relevance"]


def __getattr__(name: str) -> Any:
    # The middleware needs all of langchain, which reranking does not.
    if name == "QRHeadMemoryMiddleware":
        from langchain_qrhead.middleware import QRHeadMemoryMiddleware

        return QRHeadMemoryMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
