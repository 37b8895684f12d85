"""Rerankers by name, compared on labelled examples; answers from the passages kept."""
