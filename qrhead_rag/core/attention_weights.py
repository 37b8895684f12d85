"""Attention weights of selected heads, in float32: those that their family's eager attention computes.

Most families compute softmax(q·k·scaling + mask) and nothing else. Whether a layer does is asked of its own function,
once: then query heads that share a key head meet its keys in one product, where they lie. Any other family (soft caps,
sinks) computes the weights itself, of keys that are copied together for each head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qrhead_rag.core.model_view import eager_function, shallow_copy

_SPREADS = 0.0, 1.0, 20.0  # of the products with keys: small ones show sinks, large ones soft caps


def plain_weights(queries: Tensor, key_parts: Sequence[Tensor], mask: Tensor, scaling: float) -> Tensor:
    """softmax(q·k·scaling + mask) for query heads that share a key head.

    Args:
        queries: after position encoding, float32. Shape: (heads, rows, head size)
        key_parts: the head's keys after position encoding, in the order of their tokens.
            Shape: each (tokens of the part, head size)
        mask: additive. Shape: (rows, tokens)
        scaling: of the products.

    Returns:
        Shape: (heads, rows, tokens)

    >>> plain_weights(torch.zeros(1, 1, 2), [torch.ones(3, 2), torch.ones(1, 2)], torch.zeros(1, 4), 1.0).tolist()
    [[[0.25, 0.25, 0.25, 0.25]]]
    """
    rows = queries.flatten(0, 1)  # (heads * rows, head size)
    logits, start = rows.new_empty(len(rows), mask.shape[1]), 0
    for keys in key_parts:
        end = start + len(keys)
        torch.mm(rows, keys.to(rows).t(), out=logits[:, start:end])
        start = end
    return logits.mul_(scaling).view(*queries.shape[:2], -1).add_(mask).softmax(dim=-1)


def eager_weights(
    module: nn.Module,
    heads: Sequence[int],
    queries: Tensor,
    key_parts: Sequence[Sequence[Tensor]],
    mask: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """The weights as the module's own eager attention computes them.

    Args:
        module: the attention module.
        heads: the selected query heads of the layer.
        queries: as in `plain_weights`, of these heads. Shape: (heads, rows, head size)
        key_parts: as in `plain_weights`, for each of the heads.
        mask: additive. Shape: (rows, tokens)
        options: what the model passes to its attention function (scaling, softcap, window).

    Returns:
        Shape: (heads, rows, tokens)
    """
    chosen = shallow_copy(module)
    # A parameter with one number per head (sinks) is cut to the selected heads.
    num_heads = module.config.num_attention_heads  # type: ignore[union-attr]
    parameters = {
        name: value[list(heads)].float() if value is not None and value.shape == (num_heads,) else value
        for name, value in module._parameters.items()
    }
    chosen.__dict__ |= {"num_key_value_groups": 1, "training": False, "_parameters": parameters}
    keys = torch.stack([torch.cat([part.to(queries) for part in parts]) for parts in key_parts])
    no_values = keys[None, ..., :0]  # the output is not used: without values it costs nothing
    eager = eager_function(module)
    assert eager is not None  # find_decoder checked it
    return eager(chosen, queries[None], keys[None], no_values, mask[None, None], **(options | {"dropout": 0.0}))[1][0]


def is_plain(module: nn.Module, heads: Sequence[int], query: Tensor, options: dict[str, Any]) -> bool:
    """Whether the module's own eager attention of these heads is `plain_weights`, by asking both about random numbers.

    Args:
        module: the attention module.
        heads: the selected query heads of the layer.
        query: any of the layer's queries, for its size and device. Shape: (..., head size)
        options: what the model passes to its attention function.
    """
    scaling = options.get("scaling")
    if not isinstance(scaling, float):
        return False
    generator = torch.Generator().manual_seed(0)
    size = query.shape[-1]
    queries = torch.randn(len(heads), len(_SPREADS), size, generator=generator)
    queries *= torch.tensor(_SPREADS)[:, None] / (scaling * size**0.5)
    keys = torch.randn(len(heads), 8, size, generator=generator)
    mask = torch.zeros(len(_SPREADS), 8)
    mask[1, 5:] = torch.finfo(torch.float32).min
    queries, keys, mask = (tensor.to(query.device) for tensor in (queries, keys, mask))
    expected = eager_weights(module, heads, queries, [[of_head] for of_head in keys], mask, options)
    own = [plain_weights(queries[n : n + 1], [of_head], mask, scaling) for n, of_head in enumerate(keys)]
    return torch.allclose(torch.cat(own), expected, rtol=0, atol=1e-5)
