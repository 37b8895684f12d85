"""Loading a model without transformers' bars and reports."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

_one_at_a_time = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, and no report about the layers that are left out on purpose."""
    with _one_at_a_time:
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        gguf_bar = modeling_gguf_pytorch_utils.tqdm  # this one does not listen
        try:
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            modeling_gguf_pytorch_utils.tqdm = partial(gguf_bar, disable=True)
            yield
        finally:
            modeling_gguf_pytorch_utils.tqdm = gguf_bar
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
