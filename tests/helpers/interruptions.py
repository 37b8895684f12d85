"""A stop anywhere: interruptions come when a function is called or when one written in C returns."""

import sys
from contextlib import contextmanager


@contextmanager
def interrupted_at(at):
    """Raise KeyboardInterrupt at the `at`-th place where Python looks for signals; None counts them only."""
    seen = [0]

    def look(frame, event, argument):
        if event in ("call", "c_return"):
            seen[0] += 1
            if seen[0] == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    try:
        sys.setprofile(look)
        yield seen
    finally:
        sys.setprofile(None)
