"""What is held in memory, seen from outside."""

import torch

_SHARED = ("ListStore", "ListContext", "HeadReader", "PromptTokenizer")  # by all lists of a retriever


def held_by(root) -> tuple[set[str], int]:
    """Every string that can be reached, and the bytes of the memory behind every tensor."""
    texts, storages, known, stack = set(), {}, set(), [root]
    while stack:
        value = stack.pop()
        if id(value) in known or type(value).__name__ in _SHARED:
            continue
        known.add(id(value))
        if isinstance(value, str):
            texts.add(value)
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | frozenset | set):
            stack += value
        elif hasattr(value, "__dict__"):
            stack += vars(value).values()
    return texts, sum(storages.values())
