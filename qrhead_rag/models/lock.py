"""A fair lock whose holder can give way: who waits for a model waits for a batch of passages, not for a whole list."""

import _thread
from queue import Empty, SimpleQueue
from time import monotonic

_RLock = _thread.RLock  # `threading.RLock` is a function, which has no subclasses


class TurnLock(_RLock):  # type: ignore[misc]  # typeshed calls it final
    """A re-entrant lock that threads get in the order in which they asked for it.

    Whoever asks joins a line. Only the first of the line waits for the lock itself, so that nobody overtakes.
    Releasing is that of `threading.RLock`: written in C, no interruption can come in its middle.

    >>> lock = TurnLock()
    >>> with lock:
    ...     lock.give_way()  # nobody waits
    False
    """

    def __init__(self) -> None:
        self._line: list[SimpleQueue[None]] = []  # of each thread that waits, what wakes it
        self._was_reentered = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, after all who asked for it before.

        Args:
            blocking: whether to wait for it.
            timeout: seconds to wait at most; a negative number knows no limit.

        Returns:
            Whether it was taken.
        """
        # An interruption comes where a call begins or returns: each of these leads to a handler that undoes the step.
        if self._is_owned():  # type: ignore[attr-defined]  # as in threading.Condition
            self._was_reentered = True
            try:
                return _RLock.acquire(self)
            except BaseException:
                _RLock.release(self)
                raise
        deadline = None if blocking and timeout < 0 else monotonic() + max(0.0, timeout if blocking else 0.0)
        turn: SimpleQueue[None] = SimpleQueue()
        try:
            try:
                self._line.append(turn)
                while self._line[0] is not turn:
                    turn.get(timeout=None if deadline is None else max(0.0, deadline - monotonic()))
                acquired = _RLock.acquire(self, True, -1 if deadline is None else max(0.0, deadline - monotonic()))
            finally:
                try:
                    self._line.remove(turn)
                finally:
                    for first in self._line[:1]:
                        first.put(None)
        except Empty:
            return False
        except BaseException:
            if self._is_owned():  # type: ignore[attr-defined]
                _RLock.release(self)
            raise
        if acquired:
            self._was_reentered = False
        return acquired

    __enter__ = acquire

    def give_way(self) -> bool:
        """Let those who wait have their turn, then take the lock back.

        What the lock protects may have changed when this returns. It is held again in any case, also when the wait
        is interrupted.

        Returns:
            Whether anybody had a turn: nobody has where nobody waits, nor where the holder has taken the lock again
            since it got it.
        """
        assert self._is_owned(), "whoever gives way holds the lock"  # type: ignore[attr-defined]
        if not self._line or self._was_reentered:
            return False
        try:
            _RLock.release(self)
            self.acquire()
        except BaseException:
            self._take_back()
            raise
        return True

    def _take_back(self) -> None:
        """Take the lock whatever interrupts: a `with` around it is going to release it."""
        while True:
            try:
                if self._is_owned():  # type: ignore[attr-defined]
                    return
                self.acquire()
            except BaseException:
                continue
