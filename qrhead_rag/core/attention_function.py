"""The attention function that the layers of a view call: it reads the selected heads, then attends as the model would.

It is registered with transformers, together with its mask, under the name ATTENTION. The pass under way is a context
variable: each thread has its own, and a model that generates in another thread is not affected.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qrhead_rag.core.attention_weights import eager_weights, is_plain, plain_weights
from qrhead_rag.core.model_view import eager_function

ATTENTION = "qrhead"
_MASKED = torch.finfo(torch.float32).min


class _LastHeadReadError(Exception):
    """Ends a pass at the last selected head; never leaves this file."""


@dataclass(frozen=True)
class Context:
    """The tokens whose attention is read: the cached ones, then the late ones.

    Attributes:
        positions: of each token. Shape: (tokens,)
        cached: number of cached tokens.
        late_keys: by layer, keys that the selected heads alone see. Shape: each (key heads, late tokens, head size)
        hidden: first tokens that the selected heads do not see.
        see_all: refuse a layer that hides any other token from a row that is read.
    """

    positions: Tensor
    cached: int
    late_keys: Mapping[int, Tensor]
    hidden: int
    see_all: bool


@dataclass(frozen=True)
class PassRows:
    """The rows of one pass: first those that every part begins with, also where they were run before; then the parts.

    Attributes:
        positions: of each row. Shape: (rows,)
        same_part: which rows see each other, as far as the model lets them. Shape: (rows, rows)
        read: indices of the rows whose attention is read. Shape: (rows read,)
        last: of each reading, the last of its rows, as an index in `read`. Shape: (readings,)
        several: the readings that are the mean of several rows. Shape: (means,)
        averages: weights that take these means. Shape: (means, rows read)
    """

    positions: Tensor
    same_part: Tensor
    read: Tensor
    last: Tensor
    several: Tensor
    averages: Tensor


@dataclass(frozen=True)
class RowReading:
    """The selected heads that a pass over query rows reads, and what it has read so far.

    Attributes:
        heads: by layer.
        context: the tokens that they attend to.
        rows: the tokens that attend.
        prefix_queries: by layer, the heads' queries of the rows that were run before; their keys lie in the cache.
            Shape: each (1, heads, rows run before, head size)
        queries: by layer, those of the rows that the pass runs, filled by it. Shape: each (1, heads, rows, head size)
        attention: a(t) of each head by layer, filled by the pass. Shape: each (readings, tokens)
        plain: of each layer, whether its weights are `plain_weights`, filled when it is first read.
        additive_masks: of each mask that the pass has made, by its id, the mask itself and what was made of it.
    """

    heads: Mapping[int, list[int]]
    context: Context
    rows: PassRows
    prefix_queries: Mapping[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, list[Tensor]] = field(default_factory=dict)
    plain: dict[int, bool] = field(default_factory=dict)
    additive_masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """What a run through a view is for.

    Attributes:
        kernel: attention implementation that the layers attend with.
        last_layer: the layer in which the run ends, before its own attention.
        reading: the heads that are read; None only fills the cache.
    """

    kernel: str
    last_layer: int
    reading: RowReading | None = None


_PASS: ContextVar[Pass] = ContextVar("qrhead_pass")


def run_pass(view: nn.Module, current: Pass, **inputs: Any) -> None:
    """Run a view up to the attention of the last layer that is needed.

    Raises:
        ValueError: the view's layers do not call the attention interface.
    """
    token = _PASS.set(current)
    try:
        view(**inputs)
    except _LastHeadReadError:
        pass
    else:
        raise ValueError(
            f"{type(view).__name__} ended without calling the attention interface in layer "
            f"{current.last_layer}; expected a stock transformers model whose every attention layer does"
        )
    finally:
        _PASS.reset(token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a view: reads the selected heads of this layer, then attends as the model would."""
    current = _PASS.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    reading = current.reading
    if reading is not None:
        if layer in reading.heads:
            reading.attention[layer] = _read_layer(reading, layer, module, query, key, attention_mask, options)
        if attention_mask is not None:  # late tokens and rows that were run before are for the selected heads alone
            context, of_pass = reading.context, attention_mask[..., -query.shape[2] :, :]
            shared = of_pass[..., : context.cached], of_pass[..., len(context.positions) :]
            attention_mask = torch.cat(shared, dim=-1)
    if layer == current.last_layer:
        raise _LastHeadReadError
    attend = eager_function(module) if current.kernel == "eager" else ALL_ATTENTION_FUNCTIONS[current.kernel]
    return attend(module, query, key, value, attention_mask, **options)  # type: ignore[misc]


def _read_layer(
    reading: RowReading,
    layer: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> list[Tensor]:
    """a(t) of this layer's selected heads. Shape: each (readings, tokens)

    Args:
        reading: what is read.
        layer: of the model.
        module: the layer's attention.
        query: queries of all heads, of the rows that the pass runs. Shape: (1, query heads, rows run, head size)
        key: keys of cached tokens and of all rows. Shape: (1, key heads, cached + rows, head size)
        mask: of the layer. Shape: (1, 1, rows, tokens + rows)
        options: what the model passes to its attention function.
    """
    heads, num_tokens = reading.heads[layer], len(reading.context.positions)
    group = query.shape[1] // key.shape[1]  # query heads that share a key head
    # 1. Who may be seen: what the layer's own mask lets a row see that is read, without the hidden tokens.
    additive = _additive_mask(reading, layer, module, mask)[0, 0]
    # 2. The selected heads' queries, and the keys that they look at, the late ones between cache and rows.
    queries, key_parts = _queries(reading, layer, query), _key_parts(reading, layer, key, group)
    # 3. Weights as the family computes them, and their mean over the rows of each reading.
    if layer not in reading.plain:
        reading.plain[layer] = is_plain(module, heads, query, options)
    if not reading.plain[layer]:
        of_heads = [key_parts[head // group] for head in heads]
        weights = eager_weights(module, heads, queries, of_heads, additive, options)  # (heads, rows read, all tokens)
        return list(_readings(reading.rows, weights[:, :, :num_tokens]))
    by_number: dict[int, Tensor] = {}
    for key_head, parts in key_parts.items():
        sharing = [number for number, head in enumerate(heads) if head // group == key_head]
        weights = plain_weights(queries[sharing], parts, additive, options["scaling"])
        by_number |= dict(zip(sharing, _readings(reading.rows, weights[:, :, :num_tokens]), strict=True))
    return [by_number[number] for number in range(len(heads))]


def _queries(reading: RowReading, layer: int, query: Tensor) -> Tensor:
    """The selected heads' queries of the rows that are read, in float32. Shape: (heads, rows read, head size)"""
    queries = reading.queries[layer] = query[:, reading.heads[layer]].float()
    if layer in reading.prefix_queries:
        queries = torch.cat([reading.prefix_queries[layer], queries], dim=2)
    return queries[0, :, reading.rows.read.to(queries.device)]


def _key_parts(reading: RowReading, layer: int, key: Tensor, group: int) -> dict[int, list[Tensor]]:
    """Of each key head that is looked at, its keys where they lie: cached ones, late ones and those of the rows.

    Shape: each (tokens of the part, head size)
    """
    needed, context = key_heads(reading.heads[layer], group), reading.context
    late = context.late_keys.get(layer)
    if late is None:
        return {key_head: [key[0, key_head]] for key_head in needed}
    return {
        key_head: [key[0, key_head, : context.cached], of_head, key[0, key_head, context.cached :]]
        for key_head, of_head in zip(needed, late, strict=True)
    }


def _readings(rows: PassRows, weights: Tensor) -> Tensor:
    """The mean over the rows of each reading. Shape: (heads, rows read, tokens) -> (heads, readings, tokens)"""
    last, several, averages = (each.to(weights.device) for each in (rows.last, rows.several, rows.averages))
    readings = weights.index_select(1, last)  # right where a reading is of one row
    readings[:, several] = averages @ weights
    return readings


def _additive_mask(reading: RowReading, layer: int, module: nn.Module, mask: Tensor | None) -> Tensor:
    """0 where a row sees a token, the least number where it does not. Shape: (1, 1, rows read, tokens + rows)

    Layers that share a mask share it.

    Raises:
        ValueError: the model made no mask, or its window hides a token where all have to be seen.
    """
    if mask is None:
        raise ValueError(
            f"{type(module).__name__} was given no mask for the query rows; expected a model that builds its masks "
            "with transformers.masking_utils"
        )
    if id(mask) in reading.additive_masks:
        return reading.additive_masks[id(mask)][1]
    context = reading.context
    of_read = mask[:, :, reading.rows.read.to(mask.device)]
    visible = of_read if mask.dtype == torch.bool else of_read == 0
    if context.see_all and not bool(visible[..., context.hidden : len(context.positions)].all()):
        raise ValueError(
            f"layer {layer} attends within a window that hides part of the documents from the query; expected "
            "every document token in sight: use smaller pieces (piece_tokens=), heads of layers without a window, "
            "or listwise"
        )
    additive = torch.where(visible, 0.0, _MASKED)
    additive[..., : context.hidden] = _MASKED
    reading.additive_masks[id(mask)] = mask, additive
    return additive


def key_heads(heads: Sequence[int], group: int) -> list[int]:
    """Key heads that some query heads of a layer look at, where each serves a group of them.

    >>> key_heads([0, 1, 5], group=3)
    [0, 1]
    """
    return sorted({head // group for head in heads})


def _mask(*, mask_function: Callable[..., Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """The mask of a view: the kernel's own for documents; for the query rows, by position and by part."""
    current = _PASS.get()
    if current.reading is None:
        make: Callable[..., Tensor | None] = ALL_MASK_ATTENTION_FUNCTIONS[current.kernel]
        return make(mask_function=mask_function, dtype=dtype, **options)
    context, rows = current.reading.context, current.reading.rows
    device = rows.positions.device
    # A family's own pattern (causal, window, chunk) is asked about positions, not about indices in the cache.
    origin = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    key_positions = torch.cat([context.positions, rows.positions])  # (tokens + rows,)
    pattern = mask_function(origin, origin, rows.positions[None, None, :, None], key_positions[None, None, None, :])
    all_tokens = torch.ones(len(rows.positions), len(context.positions), dtype=torch.bool, device=device)
    mask = pattern & torch.cat([all_tokens, rows.same_part], dim=1)  # (1, 1, rows, tokens + rows)
    if current.kernel == "eager":
        return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)
    return mask


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
