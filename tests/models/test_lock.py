"""The model's lock: first come, first served, and whoever holds it can give way."""

import signal
import sys
import threading
import time

import pytest

from qrhead_rag.models.lock import TurnLock
from tests.helpers.interruptions import interrupted_at

WAIT = 30  # seconds, in which a thread that is going to run has run


class Waiter(threading.Thread):
    """Takes the lock in a thread of its own, and notes its name while it holds it."""

    def __init__(self, lock, name, order):
        super().__init__(name=name, daemon=True)
        self.lock, self.order = lock, order

    def run(self):
        with self.lock:
            self.order.append(self.name)


def in_line(lock, number):
    """Return once so many threads stand in the line."""
    end = time.monotonic() + WAIT
    while len(lock._line) != number:
        assert time.monotonic() < end, f"{len(lock._line)} threads wait instead of {number}"
        time.sleep(0.001)


def waiters(lock, names, order):
    """Threads that wait for the lock, in the order of their names."""
    threads = []
    for number, name in enumerate(names, start=len(lock._line) + 1):
        threads.append(Waiter(lock, name, order))
        threads[-1].start()
        in_line(lock, number)
    return threads


def join(threads):
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_first_come_first_served():
    lock, order = TurnLock(), []
    with lock:
        threads = waiters(lock, "abcdefgh", order)
        assert order == []
    join(threads)
    assert order == list("abcdefgh")
    assert lock._line == []


def test_nobody_overtakes_those_who_wait():
    """The thread that releases the lock asks for it again at once, which with a plain lock it mostly gets."""
    lock, order = TurnLock(), []
    lock.acquire()
    threads = waiters(lock, "ab", order)
    lock.release()
    with lock:
        assert order == ["a", "b"]
    join(threads)


def test_giving_way_lets_all_who_wait_have_a_turn():
    lock, order = TurnLock(), []
    with lock:
        threads = waiters(lock, "abc", order)
        assert lock.give_way()
        assert order == ["a", "b", "c"]
        assert lock._is_owned()
        assert not lock.give_way(), "nobody waits any more"
        threads += waiters(lock, "d", order)
        assert order == ["a", "b", "c"]
    join(threads)
    assert order == list("abcd")


def test_two_who_give_way_take_turns():
    lock, order = TurnLock(), []

    def work(name):
        with lock:
            for step in range(5):
                order.append(name)
                if step < 4:
                    lock.give_way()

    with lock:
        threads = []
        for number, name in enumerate("ab", start=1):
            threads.append(threading.Thread(target=work, args=(name,), daemon=True))
            threads[-1].start()
            in_line(lock, number)
    join(threads)
    assert order == ["a", "b"] * 5


def test_it_is_taken_again_by_its_holder_who_then_gives_no_way():
    lock, order = TurnLock(), []
    with lock:
        threads = waiters(lock, "a", order)
        with lock:
            assert not lock.give_way()
        assert not lock.give_way(), "a caller further up may rely on what it has read"
        assert order == []
    join(threads)
    with lock:
        threads = waiters(lock, "b", order)
        assert lock.give_way()
    join(threads)
    assert order == ["a", "b"]


def test_only_its_holder_gives_way_or_releases():
    lock = TurnLock()
    with pytest.raises(AssertionError, match="holds the lock"):
        lock.give_way()
    with pytest.raises(RuntimeError, match="un-acquired"):
        lock.release()


def test_it_is_not_waited_for_longer_than_asked():
    lock, results = TurnLock(), []

    def try_to_take():
        results.extend([lock.acquire(blocking=False), lock.acquire(timeout=0.01)])

    with lock:
        first = waiters(lock, "a", [])
        thread = threading.Thread(target=try_to_take)
        thread.start()
        thread.join(WAIT)
        assert results == [False, False]
        in_line(lock, 1)
    join(first)
    results.clear()
    with lock:  # nobody stands before them
        thread = threading.Thread(target=try_to_take)
        thread.start()
        thread.join(WAIT)
    assert results == [False, False]
    assert lock._line == []
    assert lock.acquire(blocking=False)
    lock.release()


def take(lock):
    with lock:
        pass


def take_twice(lock):
    with lock, lock:
        pass


@pytest.mark.parametrize("action", [take, take_twice])
def test_an_interruption_anywhere_leaves_it_free(action):
    with interrupted_at(None) as seen:
        action(TurnLock())
    assert seen[0] > 4
    for at in range(1, seen[0] + 1):
        lock = TurnLock()
        try:
            with interrupted_at(at):
                action(lock)
        except KeyboardInterrupt:
            pass
        assert lock._line == [], at
        assert not lock._is_owned(), at


def test_an_interruption_while_giving_way_leaves_the_lock_with_its_holder():
    def give_way(lock, order, at):
        with lock:
            threads = waiters(lock, "ab", order)
            try:
                with interrupted_at(at) as seen:
                    lock.give_way()
            finally:
                assert lock._is_owned()
        join(threads)
        return seen[0]

    places = give_way(TurnLock(), [], None)
    assert places > 8
    for at in range(1, places + 1):
        lock, order = TurnLock(), []
        try:
            give_way(lock, order, at)
        except KeyboardInterrupt:
            end = time.monotonic() + WAIT
            while len(order) < 2 and time.monotonic() < end:
                time.sleep(0.001)
        assert order == ["a", "b"], at
        assert lock._line == [], at
        assert not lock._is_owned(), at


@pytest.mark.skipif(sys.platform == "win32", reason="a thread that waits is not woken by Ctrl-C there")
def test_an_interrupted_wait_leaves_no_place_in_the_line():
    """The main thread is interrupted by a signal as it waits, first as the next, then behind another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for others in ("", "a"):
            lock, order = TurnLock(), []
            holds, release = threading.Event(), threading.Event()

            def hold(lock=lock, holds=holds, release=release):
                with lock:
                    holds.set()
                    release.wait(WAIT)

            def interrupt(lock=lock, others=others):
                in_line(lock, len(others) + 1)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

            holder = threading.Thread(target=hold, daemon=True)
            holder.start()
            holds.wait(WAIT)
            threads = waiters(lock, others, order)
            interrupting = threading.Thread(target=interrupt, daemon=True)
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                lock.acquire(timeout=WAIT)
            in_line(lock, len(others))
            threads += waiters(lock, "b", order)
            release.set()
            join([holder, interrupting, *threads])
            assert order == [*others, "b"]
    finally:
        signal.signal(signal.SIGINT, before)
