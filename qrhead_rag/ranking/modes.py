"""The modes by name, and a list that is asked once."""

from collections.abc import Sequence

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.reading import Reading
from qrhead_rag.ranking.cache import content_key
from qrhead_rag.ranking.context import ListState
from qrhead_rag.ranking.listwise import ListwiseList
from qrhead_rag.ranking.per_passage import Independent, Late, PerPassage
from qrhead_rag.ranking.store import ListStore

MODES: dict[Mode, type[ListwiseList] | type[PerPassage]] = {
    "listwise": ListwiseList,
    "independent": Independent,
    "late": Late,
}


def new_list(store: ListStore) -> ListState:
    """A list without passages, as the retriever's mode holds it."""
    return MODES[store.context.mode](store)


def known_list(store: ListStore, passages: Sequence[Passage]) -> tuple[str, ListState]:
    """The cache's key of a list, and what the cache holds under it; where that is nothing, a new list."""
    key = content_key("list", *(passage.content for passage in passages))
    return key, store.cache.get(key) or new_list(store)


def read_list(key: str, state: ListState, query: str, passages: Sequence[Passage]) -> tuple[Reading, frozenset[int]]:
    """What a query finds in a list, and which documents were cut; what was read of the list is kept.

    Whoever calls it holds the lock.

    Args:
        key: of the list, and
        state: of it, both from `known_list`.
        query: the question.
        passages: the list.

    Raises:
        ListTooLongError: list and query do not fit the model's context.
        FloatingPointError: attention that is not finite.
    """
    state.set_passages(passages, query)
    state.recall()
    (reading,) = state.ask([query])
    state.keep(key)
    return reading, state.truncated
