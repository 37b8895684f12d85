"""Lists longer than the model's context, ranked in sliding windows as in In-Context Re-ranking (arXiv 2410.02642).

A window slides from the end of the list to its beginning; what it finds best moves to its front and is seen again by
the next window.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qrhead_rag.core.passage import Passage, as_passages
from qrhead_rag.core.pruning import Prune
from qrhead_rag.core.reading import Evidence, Reading
from qrhead_rag.core.scoring import NotFiniteError
from qrhead_rag.core.selection import Selection, rank_order
from qrhead_rag.ranking.context import ListTooLongError, check_length, warn_of_truncation
from qrhead_rag.ranking.modes import new_list
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.store import ListStore
from qrhead_rag.ranking.warn import warn_caller

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
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_RAN_OUT)


def rank_in_windows(
    store: ListStore,
    query: str,
    passages: Sequence[Passage],
    selection: Selection,
    token_counter: Callable[[str], int] | None,
    retrieval_scores: Sequence[float] | None,
    prune: Prune | None,
) -> Ranking:
    """The documents of a list ordered by score, each scored in the last window that it stood in.

    The lock is taken for each window, so that other threads' lists are ranked in between. Warns of the windows. Where
    memory runs out, the list is read in smaller ones, which the warning says too.

    Raises:
        ListTooLongError: the query leaves no room for two documents, or the window asked for (window=) does not fit.
    """
    context = store.context
    read = [index for index, passage in enumerate(passages) if not passage.is_blank]
    with context.lock:
        room = context.room(query, documents=2)
        # Windows order documents by comparing them, so that every two of them have to fit one prompt.
        contents, clipped = context.clip([passages[index].content for index in read], room // 2)
        sizes = [context.size(content) for content in contents]
    truncated = {read[number] for number in clipped}
    warn_of_truncation(passages, truncated)
    size = window_size(sizes, room, context.options.window)
    scores = torch.zeros(len(passages))
    evidence: list[Evidence | None] = [None] * len(passages)
    list_evidence: float | None = None

    def best_first(numbers: list[int]) -> list[int]:
        nonlocal list_evidence
        indices = torch.tensor([read[number] for number in numbers])
        reading = _read_window(store, query, [contents[number] for number in numbers], indices)
        of_window, tokens = reading.scores(len(numbers))
        list_evidence = reading.list_evidence(of_window)  # the last window has the best of all windows
        scores[indices] = of_window
        for index, token in zip(indices.tolist(), tokens, strict=True):
            evidence[index] = token
        return [numbers[index] for index in rank_order(of_window.tolist())]

    order, window, stride = _slide(store, len(read), size, best_first)
    more = f" (memory ran out with {size})" if window < size else ""
    warn_caller(
        f"{len(passages)} documents are longer together than the model's context of {context.context_length} "
        f"tokens: ranked in sliding windows of {window}{more}, moved by {stride}; scores are those of each "
        "document's last window"
    )
    counts = context.token_counts(passages, selection, token_counter)
    best = [read[number] for number in order]
    return Ranking.of(
        query,
        passages,
        scores,
        evidence,
        selection,
        counts,
        context.mode,
        truncated,
        retrieval_scores=retrieval_scores,
        windowed=True,
        order=best,
        list_evidence=list_evidence,
        prune=prune,
        count_tokens=token_counter or context.count_tokens,
    )


def _read_window(store: ListStore, query: str, contents: Sequence[str], indices: Tensor) -> Reading:
    """What the query finds in one window.

    Args:
        store: of the retriever.
        query: the question.
        contents: of the documents.
        indices: of the documents in the whole list, for errors.
    """
    context = store.context
    state = new_list(store)
    try:
        with context.lock:
            state.set_passages(as_passages(contents), query)
            (reading,) = state.ask([query])
    except ListTooLongError as error:
        what, remedy = f"window={len(contents)} documents with the query", "use a smaller window, or None"
        check_length(what, error.tokens, context.context_length, f"{remedy} for as many documents as fit")
        raise
    except NotFiniteError as error:
        document = None if error.document is None else int(indices[error.document])
        raise NotFiniteError(error.layer, error.head, document) from error
    return reading


def _slide(
    store: ListStore, num_documents: int, window: int, best_first: Callable[[list[int]], list[int]]
) -> tuple[list[int], int, int]:
    """Order, window and stride; where memory runs out, the whole list again in windows half as long."""
    while True:
        stride = min(store.context.options.stride or max(1, window // 2), window)
        try:
            return slide(num_documents, window, stride, best_first), window, stride
        except (MemoryError, RuntimeError) as error:
            if window == 2 or not is_out_of_memory(error):
                raise
        # Only after the handler is what the failed pass held let go of.
        window = max(2, min(window, num_documents) // 2)
        with store.context.lock:
            store.clear()
