"""Attention weights as a model family's own eager function computes them: scaling, soft cap, window and sinks."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The function of its family that computes attention and shows the weights."""
    for ancestor in type(module).__mro__:
        found = getattr(sys.modules.get(ancestor.__module__), "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None


def eager_weights(
    module: nn.Module, heads: Sequence[int], query: Tensor, keys: Tensor, mask: Tensor, options: dict[str, Any]
) -> Tensor:
    """Attention weights as the module's own eager attention computes them.

    Args:
        module: the attention module.
        heads: query heads of the layer that are wanted.
        query: their queries after position encoding, float32. # (batch, heads, rows, head size)
        keys: their keys after position encoding, float32. # (batch, heads, tokens, head size)
        mask: additive. # (batch or 1, 1, rows, tokens)
        options: what the model gives its attention function (scaling, softcap, window).

    Returns:
        # (batch, heads, rows, tokens)
    """
    chosen = shallow_copy(module)
    # A parameter of one number per head (sinks) goes with the heads.
    num_heads = module.config.num_attention_heads  # type: ignore[union-attr]
    parameters = {
        name: value[list(heads)].float() if value is not None and value.shape == (num_heads,) else value
        for name, value in module._parameters.items()
    }
    chosen.__dict__ |= {"num_key_value_groups": 1, "training": False, "_parameters": parameters}
    no_values = keys[..., :0]  # the output is not wanted, so its product costs nothing
    eager = eager_function(module)
    assert eager is not None  # find_decoder has seen to it
    return eager(chosen, query, keys, no_values, mask, **(options | {"dropout": 0.0}))[1]


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module that shares everything with another, and may be given other attributes."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    return copied
