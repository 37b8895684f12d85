"""Queries that several threads ask of the same list at once: answered together, by whoever gets the lock first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qrhead_rag.core.passage import Passage
from qrhead_rag.core.reading import Reading
from qrhead_rag.ranking.context import ListContext

_QUERIES_TOGETHER = 16  # of several threads in one pass, which bounds how long each waits


class Answer(NamedTuple):
    """What some queries read of a list.

    Attributes:
        readings: of each query.
        passages: the list as it then was.
        truncated: indices of the documents that are read only in part.
    """

    readings: list[Reading]
    passages: list[Passage]
    truncated: frozenset[int]


@dataclass(eq=False)
class _Asked:
    """The queries of one call.

    Attributes:
        queries: in the caller's order.
        answer: once there is one.
        is_shared: whether another thread may ask them: not while one does, nor once that has failed.
    """

    queries: Sequence[str]
    answer: Answer | None = None
    is_shared: bool = True


class WaitingQueries:
    """The queries that wait for one list.

    Args:
        context: of the list, whose lock they wait for.
    """

    def __init__(self, context: ListContext) -> None:
        self._context = context
        self._waiting: list[_Asked] = []

    def ask(self, queries: Sequence[str], read: Callable[[Sequence[str]], Answer]) -> Answer:
        """The answer to some queries, read together with those that wait meanwhile.

        Where a pass over the queries of several threads fails, each of them asks for itself: an error reaches the
        caller whose query it is of.

        Args:
            queries: of this call.
            read: reads the list; called while the lock is held.
        """
        asked = _Asked(queries)
        self._waiting.append(asked)
        try:
            with self._context.lock:
                if asked.answer is None:
                    self._answer(asked, read)
        finally:
            self._waiting.remove(asked)
        assert asked.answer is not None
        return asked.answer

    def _answer(self, asked: _Asked, read: Callable[[Sequence[str]], Answer]) -> None:
        group = self._group(asked)
        for member in group:
            member.is_shared = False
        try:
            answer = read([query for member in group for query in member.queries])
        except Exception:
            if len(group) == 1:
                raise
            asked.answer = read(asked.queries)
            return
        except BaseException:  # this thread is interrupted, which is no matter of the others
            for member in group:
                member.is_shared = True
            raise
        start = 0
        for member in group:
            own = answer.readings[start : start + len(member.queries)]
            start += len(member.queries)
            member.answer = answer._replace(readings=own)

    def _group(self, asked: _Asked) -> list[_Asked]:
        """These queries, and as many others as a pass may have."""
        group, total = [asked], len(asked.queries)
        for other in list(self._waiting) if asked.is_shared else ():
            total_with = total + len(other.queries)
            if other is not asked and other.is_shared and total_with <= _QUERIES_TOGETHER:
                group.append(other)
                total = total_with
        return group
