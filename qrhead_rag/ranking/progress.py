"""A progress bar where one is asked for. Where none is, no tqdm: a disabled one still takes a lock of the process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tqdm.auto import tqdm


def progress_bar(
    total: int, description: str, unit: str, show: bool
) -> AbstractContextManager[Callable[[int], object]]:
    """A context that gives the function to call with each step's units.

    >>> with progress_bar(9, "encoding", "token", show=False) as advance:
    ...     advance(9)
    """
    return _bar(total, description, unit) if show else nullcontext(lambda units: None)


@contextmanager
def _bar(total: int, description: str, unit: str) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar.update
