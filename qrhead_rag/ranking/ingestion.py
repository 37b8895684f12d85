"""Documents into a passage store, a part at a time, so that memory does not grow with their number."""

from collections.abc import Iterable
from dataclasses import replace

from qrhead_rag.core.passage import Document, as_passages
from qrhead_rag.ranking.cache import ByteCache
from qrhead_rag.ranking.context import warn_of_truncation
from qrhead_rag.ranking.modes import new_list
from qrhead_rag.ranking.progress import progress_bar
from qrhead_rag.ranking.store import ListStore

_AT_ONCE = 256  # passages in memory


def encode_to_store(store: ListStore, documents: Iterable[Document], show_progress: bool = False) -> int:
    """Encode documents and keep them in the store; those that it has are not run again.

    Args:
        store: of the lists of a retriever that has a passage store.
        documents: str, Passage or mapping; they are not changed.
        show_progress: show a progress bar, in passages.

    Returns:
        How many were encoded and stored.

    Raises:
        ValueError: the retriever has no passage store.
        OSError: the passage store cannot be written.
    """
    if store.stored is None:
        raise ValueError("the retriever has no store to encode into; expected one: make it with store=, a path for one")
    passages, context = as_passages(documents), store.context
    stored = replace(store.stored, must_be_written=True, written=0)
    uncached = replace(store, cache=ByteCache(0), stored=stored)
    with progress_bar(len(passages), "encoding", "passage", show_progress) as advance:
        for start in range(0, len(passages), _AT_ONCE):
            part, state = passages[start : start + _AT_ONCE], new_list(uncached)
            with context.lock:
                state.set_passages(part)
                state.run()
            warn_of_truncation(part, state.truncated)
            advance(len(part))
    return stored.written
