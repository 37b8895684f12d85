"""Rerank nodes and trim memory in LlamaIndex by a language model's own attention."""

from llama_index.postprocessor.qrhead.encoder import QRHeadEncoder
from llama_index.postprocessor.qrhead.kvstore import KVByteStore
from llama_index.postprocessor.qrhead.memory import QRHeadMemory
from llama_index.postprocessor.qrhead.reranker import QRHeadReranker

__all__ = ["KVByteStore", "QRHeadEncoder", "QRHeadMemory", "QRHeadReranker"]
