"""Lists longer than the model's context, ranked in sliding windows as in In-Context Re-ranking (arXiv 2410.02642).

A window slides from the end of the list to its beginning; what it finds best moves to its front and is seen again by
the next window.
"""

from collections.abc import Callable, Sequence

import torch

from qrhead_rag.core.passage import Passage
from qrhead_rag.core.scoring import Evidence, NotFiniteError
from qrhead_rag.core.selection import Selection, select
from qrhead_rag.ranking.context import ListContext, ListTooLongError, warn_caller, warn_of_truncation
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.result import RankedPassage, Ranking

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


def rank_in_windows(
    encoder: ListContext,
    query: str,
    passages: Sequence[Passage],
    selection: Selection,
    token_counter: Callable[[str], int],
) -> Ranking:
    """The documents of a list ordered by score, each scored in the last window that it stood in.

    Warns of the windows. Where memory runs out, the list is read in smaller ones, which the warning says too.

    Raises:
        ListTooLongError: the query leaves no room for two documents, or the window asked for (window=) does not fit.
    """
    read = [place for place, passage in enumerate(passages) if not passage.is_blank]
    blank = [place for place, passage in enumerate(passages) if passage.is_blank]
    with encoder.lock:
        room = encoder.room(query)
        if room // 2 <= encoder.size("") + 2:
            raise ListTooLongError(
                f"the query leaves {room:.0f} of the {encoder.context_length} tokens of the model's context, which is "
                "no room for two documents to be compared; use a shorter query"
            )
        # Windows order documents by comparing them, so that every two of them have to fit one prompt.
        contents, clipped = encoder.clip([passages[place].content for place in read], room // 2)
        sizes = [encoder.size(content) for content in contents]
    truncated = {read[place] for place in clipped}
    warn_of_truncation(passages, truncated)
    wanted = window_size(sizes, room, encoder.options.window)
    scores = [0.0] * len(passages)
    evidence: list[Evidence | None] = [None] * len(passages)

    def best_first(places: list[int]) -> list[int]:
        try:
            encoded = EncodedPassages(encoder, [contents[place] for place in places], query)
        except ListTooLongError as error:
            raise ListTooLongError(
                f"window={len(places)} documents do not fit the model's context of {encoder.context_length} "
                "tokens; use a smaller window, or None for as many as fit"
            ) from error
        try:
            found, tokens = encoded.scored([query])[0]
        except NotFiniteError as error:
            document = None if error.document is None else read[places[error.document]]
            raise NotFiniteError(error.layer, error.head, document) from error
        for place, score, token in zip(places, found, tokens, strict=True):
            scores[read[place]], evidence[read[place]] = score, token
        return sorted(places, key=lambda place: -scores[read[place]])

    order, window, stride = _slide(encoder, len(read), wanted, best_first)
    more = f" (memory ran out with {wanted})" if window < wanted else ""
    warn_caller(
        f"{len(passages)} documents are longer together than the model's context of {encoder.context_length} "
        f"tokens: ranked in sliding windows of {window}{more}, moved by {stride}; scores are those of each "
        "document's last window"
    )
    for place in blank:
        scores[place] = min(scores[place] for place in read)
    ranking = [read[place] for place in order] + blank
    counts = [token_counter(passage.content) for passage in passages] if selection.max_tokens is not None else None
    kept = select(scores, selection, counts, ranking)
    return Ranking(
        query,
        tuple(RankedPassage(place, scores[place], passages[place], place in truncated) for place in kept),
        encoder.mode,
        windowed=True,
        _evidence=tuple(evidence),
    )


def _slide(
    encoder: ListContext, num_documents: int, window: int, best_first: Callable[[list[int]], list[int]]
) -> tuple[list[int], int, int]:
    """Order, window and stride; where memory runs out, the whole list again in windows half as long."""
    while True:
        stride = min(encoder.options.stride or max(1, window // 2), window)
        try:
            return slide(num_documents, window, stride, best_first), window, stride
        except (MemoryError, RuntimeError) as error:
            if window == 2 or not is_out_of_memory(error):
                raise
        # Only after the handler is what the failed pass held let go of.
        window = max(2, min(window, num_documents) // 2)
        with encoder.lock:
            encoder.kept.clear()
