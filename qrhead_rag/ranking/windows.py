"""Lists longer than the model's context, ranked in sliding windows as in In-Context Re-ranking (arXiv 2410.02642).

A window slides from the end of the list to its beginning; what it finds best moves to its front and is seen again by
the next window. This file knows nothing of models: a window is scored by a function.
"""

from collections.abc import Callable, Sequence

import torch

_MEMORY_RAN_OUT = ("out of memory", "not enough memory", "can't allocate memory")  # accelerators, then CPUs


def window_size(sizes: Sequence[int], room: float, window: int | None) -> int:
    """Documents that fit one prompt whichever they are, at least two, or what the caller asked for.

    Args:
        sizes: tokens of each document.
        room: tokens that a prompt has for documents.
        window: the caller's choice.

    >>> window_size([10, 30, 20], room=50, window=None)
    2
    """
    if window is not None:
        return window
    total, fitting = 0, 0
    for size in sorted(sizes, reverse=True):
        total += size
        if total > room:
            break
        fitting += 1
    return max(2, fitting)


def slide(num_documents: int, window: int, stride: int, best_first: Callable[[list[int]], list[int]]) -> list[int]:
    """The order that sliding windows give.

    Args:
        num_documents: documents in the list.
        window: documents seen together.
        stride: documents that a window moves by.
        best_first: the given documents ordered by score, best first.

    >>> slide(5, 2, 1, lambda places: sorted(places, reverse=True))
    [4, 0, 1, 2, 3]
    """
    order = list(range(num_documents))
    start = max(0, num_documents - window)
    while True:
        order[start : start + window] = best_first(order[start : start + window])
        if start == 0:
            return order
        start = max(0, start - stride)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on whatever device.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    True
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _MEMORY_RAN_OUT)
