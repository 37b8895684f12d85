"""Files in, records out: passages, lists, labelled examples; BM25, which makes lists."""

from qrhead_rag.datasets.load import load_examples, ordered

__all__ = ["load_examples", "ordered"]
