"""What is known of a model in memory to everything in this process that reads it.

State that a whole process shares stands in five places, and nowhere else: the lock of each model here, the lock around
transformers' own switches in `quiet.py`, the pass under way in `core/attention_function.py`, the rerankers and the
conversations that framework components share in `frameworks/scorer.py` and `frameworks/conversation.py`.
"""

import threading
from weakref import WeakKeyDictionary

from transformers import PreTrainedConfig, PreTrainedModel

from qrhead_rag.core.heads import ModelShape

_WHOLE_LAYERS = "qrhead_whole_layers"

_locks: "WeakKeyDictionary[PreTrainedModel, threading.RLock]" = WeakKeyDictionary()
_locks_guard = threading.Lock()


def model_lock(model: PreTrainedModel) -> threading.RLock:
    """The lock of a model, held while its tokenizer or its layers run: fast tokenizers are not thread-safe."""
    with _locks_guard:
        return _locks.setdefault(model, threading.RLock())


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
