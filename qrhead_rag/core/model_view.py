"""Views of a model: the same modules again, sharing every weight, with a configuration of their own.

A pass through a view leaves the model as it is, whatever happens on the way: a model that is shared keeps its hooks,
configuration and attention implementation, and may generate in another thread meanwhile.
"""

import copy
import inspect
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qrhead_rag.core.eager import eager_function, shallow_copy

_PROVED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder inside a model: the module that owns the list of layers.

    Raises:
        ValueError: the model is an encoder-decoder, has linear or latent attention or no eager attention function, or
            its layers are cut over several processes.
    """
    config = model.config.get_text_config()
    name = config.model_type
    kinds = set(getattr(config, "layer_types", None) or ()) - _PROVED_LAYERS
    latent = getattr(config, "kv_lora_rank", None) is not None
    if kinds or latent or model.config.is_encoder_decoder:
        found = sorted(kinds) or ("latent attention (MLA)" if latent else "an encoder beside the decoder")
        raise ValueError(
            f"{name} has {found}, which cannot be read; expected a decoder with softmax attention in every layer"
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


def cache_argument(decoder: PreTrainedModel) -> str:
    """The name under which a decoder takes keys and values: transformers 5.24 made `past_key_values` into `cache`."""
    return "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"


def view_of(decoder: PreTrainedModel, num_layers: int, attention: str) -> nn.Module:
    """The decoder again, to its first layers, with a configuration that names another attention function."""
    copies: dict[int, Any] = {}

    def view(module: nn.Module) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]  # type: ignore[no-any-return]
        copied = copies[id(module)] = shallow_copy(module)
        copied.__dict__["training"] = False
        copied.__dict__["_buffers"] = dict(module._buffers)  # rotary embeddings write to theirs
        children = module._modules
        if isinstance(module, nn.ModuleList) and len(module) == decoder.config.num_hidden_layers:
            children = dict(list(children.items())[:num_layers])
        copied.__dict__["_modules"] = {
            name: child if child is None else view(child) for name, child in children.items()
        }
        for name, value in module.__dict__.items():
            if name not in ("training", "_buffers", "_modules"):
                copied.__dict__[name] = _rebound(value, module, copied, attention, copies)
        return copied

    return view(decoder)


def _rebound(value: Any, module: nn.Module, copied: nn.Module, attention: str, copies: dict[int, Any]) -> Any:
    """An attribute of a module as its copy needs it."""
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
