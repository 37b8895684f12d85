"""Views of a model with another attention function, its family's eager attention, and its keys and values.

A view shares every weight with the model and changes nothing of it, also when a pass is interrupted: a shared model
keeps its hooks, configuration and attention implementation, and may generate in another thread meanwhile.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

_PROVED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder inside a model: the module that owns the list of layers.

    Raises:
        ValueError: the model is an encoder-decoder, has linear or latent attention or no eager attention function, or
            its layers are cut over several processes.

    >>> type(find_decoder(model)).__name__
    'LlamaModel'
    """
    config = model.config.get_text_config()
    name = config.model_type
    kinds = set(getattr(config, "layer_types", None) or ()) - _PROVED_LAYERS
    latent = getattr(config, "kv_lora_rank", None) is not None
    if kinds or latent or model.config.is_encoder_decoder:
        obstacle = sorted(kinds) or ("latent attention (MLA)" if latent else "an encoder beside the decoder")
        raise ValueError(
            f"{name} has {obstacle}, which cannot be read; expected a decoder with softmax attention in every layer"
        )
    if getattr(model, "_device_mesh", None) is not None:  # of tensor parallelism: each process has some heads only
        raise ValueError(
            f"{name} is cut over several processes (tp_plan), none of which sees all heads; expected whole layers: "
            'spread them over the devices of one process with device_map="auto"'
        )
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in (inner or model).modules():
        for layers in module.children():
            if isinstance(layers, nn.ModuleList) and len(layers) == config.num_hidden_layers:
                if not any(eager_function(part) for part in layers[0].modules() if hasattr(part, "layer_idx")):
                    raise ValueError(
                        f"{name} has no eager attention function in its module; expected a family that uses the "
                        "attention interface of transformers"
                    )
                return module
    raise ValueError(
        f"{type(model).__name__} has no list of {config.num_hidden_layers} layers; expected a decoder of transformers"
    )


def layer_list(decoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """A decoder's own list of layers, and its name within the decoder.

    >>> name, layers = layer_list(find_decoder(model))
    >>> name, len(layers)
    ('layers', 4)
    """
    return next((name, part) for name, part in decoder.named_children() if isinstance(part, nn.ModuleList))


def cache_argument(decoder: PreTrainedModel) -> str:
    """The name of a decoder's argument for keys and values: `past_key_values`, since transformers 5.24 `cache`."""
    return "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"


def view_of(decoder: PreTrainedModel, num_layers: int, attention: str) -> nn.Module:
    """A view of the decoder's first layers, with a configuration that names another attention function."""
    copies: dict[int, Any] = {}

    def view(module: nn.Module) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]  # type: ignore[no-any-return]
        attributes = module.__dict__
        rebound = [name for name, value in attributes.items() if isinstance(value, _REBOUND)]
        children, buffers, training = module._modules, module._buffers, module.training
        if not (rebound or children or buffers or training) and type(module).__module__.startswith("torch.nn."):
            return module  # such as a linear layer: its copy would be the same
        copied = copies[id(module)] = shallow_copy(module)
        own = copied.__dict__
        own["training"] = False
        own["_buffers"] = dict(buffers)  # rotary embeddings write to theirs
        if isinstance(module, nn.ModuleList) and len(module) == decoder.config.num_hidden_layers:
            children = dict(list(children.items())[:num_layers])
        own["_modules"] = {name: child if child is None else view(child) for name, child in children.items()}
        for name in rebound:
            own[name] = _rebound(attributes[name], module, copied, attention, copies)
        return copied

    return view(decoder)


_REBOUND = PreTrainedConfig, MethodType, partial


def _rebound(value: Any, module: nn.Module, copied: nn.Module, attention: str, copies: dict[int, Any]) -> Any:
    """An attribute of a module, of the types `_REBOUND`, as its copy needs it."""
    if isinstance(value, PreTrainedConfig):
        if id(value) not in copies:
            config = copies[id(value)] = copy.copy(value)
            config.__dict__ |= {
                "_attn_implementation_internal": attention,
                "_output_attentions": False,
                "output_hidden_states": False,
            }
        return copies[id(value)]
    # accelerate replaces a module's `forward` by a function that is bound to it.
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copied)
    if isinstance(value, partial) and value.args[:1] == (module,):
        return partial(value.func, copied, *value.args[1:], **value.keywords)
    return value


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function of the module's family that computes attention and returns the weights."""
    for ancestor in type(module).__mro__:
        function = getattr(sys.modules.get(ancestor.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    return None


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module that shares everything with another, and whose attributes can be replaced."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    return copied


def join(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` that gives the same where a caller casts what runs: autocast on a CPU joins no float16.

    >>> join([torch.zeros(2, 3), torch.zeros(1, 3)], dim=0).shape
    torch.Size([3, 3])
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        return torch.cat(list(tensors), dim)


def crop(cache: DynamicCache, tokens: int) -> None:
    """Drop every cached token from index `tokens` on, and free its memory."""
    for layer in cache.layers:
        if layer.keys.shape[-2] > tokens:
            layer.keys, layer.values = layer.keys[..., :tokens, :].clone(), layer.values[..., :tokens, :].clone()


def cache_bytes(cache: DynamicCache | None) -> int:
    """Bytes of a cache's keys and values."""
    return sum(tensor.nbytes for tensors in layer_tensors(cache) for tensor in tensors) if cache is not None else 0


def layer_tensors(cache: DynamicCache) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of each layer. Shape: each (batch, key heads, tokens, head size)"""
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


def cache_of(keys: Sequence[Tensor], values: Sequence[Tensor]) -> DynamicCache:
    """A cache of these keys and values. Shape: each (batch, key heads, tokens, head size)"""
    cache = DynamicCache()
    for key, value in zip(keys, values, strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


class _ReadOnlyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that later tokens see and do not extend."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class _JoinedLayer(_ReadOnlyLayer):
    """A read-only layer whose keys and values lie in several tensors: one copy joins them with the later ones."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self._keys, self._values = keys, values

    def get_seq_length(self, *args: Any) -> int:
        return sum(tensor.shape[-2] for tensor in self._keys)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([*self._keys, key_states], dim=-2), torch.cat([*self._values, value_states], dim=-2)


def joined_cache(keys: Sequence[Sequence[Tensor]], values: Sequence[Sequence[Tensor]]) -> DynamicCache:
    """A read-only cache of tensors that stay where they are.

    Args:
        keys: of each layer, in the order of their tokens. Shape: (1, key heads, tokens, head size) each
        values: likewise.
    """
    cache = DynamicCache()
    cache.layers.extend(_JoinedLayer(*layer) for layer in zip(keys, values, strict=True))
    return cache


def read_only_copy(cache: DynamicCache) -> DynamicCache:
    """A cache of the same tensors, which a pass sees and does not change."""
    copied = DynamicCache()
    for layer in cache.layers:
        if isinstance(layer, _ReadOnlyLayer):
            copied.layers.append(layer)
            continue
        read_only = _ReadOnlyLayer()
        read_only.__dict__.update(layer.__dict__)
        copied.layers.append(read_only)
    return copied
