"""What is known of a model in memory to everything in this process that reads it.

State that a whole process shares stands in five places, and nowhere else: the locks here and what a fork leaves of
them, the lock around transformers' own switches in `quiet.py`, the pass under way in `core/attention_function.py`, the
retrievers and the conversations that framework components share in `ranking/loaded.py` and
`frameworks/history.py`.
"""

import os
import threading
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qrhead_rag.core.heads import ModelShape
from qrhead_rag.models.lock import TurnLock

_WHOLE_LAYERS = "qrhead_whole_layers"

_locks: "WeakKeyDictionary[PreTrainedModel, TurnLock]" = WeakKeyDictionary()
_locks_guard = threading.Lock()
_all_locks: "WeakSet[TurnLock]" = WeakSet()
_ran_in: set[int] = set()  # ids of the processes in which models were run: of this one and those it was forked from
_orphans: list[TurnLock] = []  # locks that other threads held when this process was forked


def model_lock(model: PreTrainedModel) -> TurnLock:
    """The lock of a model, held while its tokenizer or its layers run: fast tokenizers are not thread-safe."""
    with _locks_guard:
        return _locks.get(model) or _locks.setdefault(model, new_lock())


def new_lock() -> TurnLock:
    """A lock for work on models; `check_fork` knows it."""
    lock = TurnLock()
    _all_locks.add(lock)
    return lock


def check_fork(lock: TurnLock) -> TurnLock:
    """The lock, before it is taken for work on a model.

    A forked process has the memory of its parent and only one of its threads. What waits there for another, a parallel
    operation of torch or a lock, waits for ever.

    Raises:
        RuntimeError: this process was forked from one that had run models on several threads, or held the lock.
    """
    _ran_in.add(os.getpid())
    if len(_ran_in) > 1 and torch.get_num_threads() > 1:
        raise RuntimeError(
            "this process was forked from one that had loaded or run a model, and the threads of torch do not exist "
            "here: the model would wait for them for ever; start processes by 'spawn' or 'forkserver', fork before the "
            "first model is loaded, or call torch.set_num_threads(1) here first"
        )
    if any(lock is orphan for orphan in _orphans):
        raise RuntimeError(
            "this process was forked while another thread loaded or ran this model, and that thread does not exist "
            "here: its lock is never released; start processes by 'spawn' or 'forkserver', or fork before the first "
            "model is loaded"
        )
    return lock


def _find_orphans() -> None:
    for lock in _all_locks:
        if lock.acquire(blocking=False):
            lock.release()
        else:
            _orphans.append(lock)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_find_orphans)


def whole_shape(config: PreTrainedConfig) -> ModelShape:
    """Architecture, layers and query heads of a configuration's text part, counted before it was cut.

    >>> from transformers import LlamaConfig
    >>> config = LlamaConfig(num_hidden_layers=32, num_attention_heads=32)
    >>> str(whole_shape(config))
    'llama, 32 layers of 32 heads'
    >>> cut_layers(config, 19)
    >>> str(whole_shape(config))
    'llama, 32 layers of 32 heads'
    """
    text = config.get_text_config()
    num_layers = getattr(text, _WHOLE_LAYERS, text.num_hidden_layers)
    return ModelShape(text.model_type, num_layers, text.num_attention_heads)


def cut_layers(config: PreTrainedConfig, num_layers: int) -> None:
    """Cut a configuration to the model's first layers; it remembers how many there were, also copied or saved."""
    text = config.get_text_config()
    setattr(text, _WHOLE_LAYERS, whole_shape(config).num_layers)
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        text.layer_types = kinds[:num_layers]
    text.num_hidden_layers = num_layers
