"""Load a model without the progress bars and reports of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from qrhead_rag.models.shared import check_fork, new_lock

_switches = new_lock()  # they belong to the process


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, and no report about the layers that are left out on purpose."""
    with check_fork(_switches):
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        gguf_bar = modeling_gguf_pytorch_utils.tqdm  # this bar ignores the switch
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
