"""Token ids to the attention of selected heads, on stock transformers models and on any device.

A pass runs through a view of the model (model_view.py) whose configuration names the attention function of this file.
Documents run under the model's own fast kernel. For the query rows the weights of the selected heads are computed by
the eager attention function that every family's module has (scaling, soft cap, window and sinks are its business), in
float32, for those rows and heads alone. No layer above the last selected head runs, and of that layer nothing after its
attention.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qrhead_rag.core.heads import Head
from qrhead_rag.core.model_view import (
    cache_argument,
    eager_function,
    eager_weights,
    find_decoder,
    read_only_copy,
    view_of,
)

PREFILL_TOKENS = 2048
_EAGER_PREFILL_BYTES = 128 * 2**20
_ROWS_AT_ONCE = 1024
_NAME = "qrhead"


@dataclass(frozen=True)
class Rows:
    """Tokens that follow the cached ones, see them, and see each other: a query part or a null-query part.

    Attributes:
        ids: the tokens.
        position: position of the first one.
        read_from: rows from this one on are averaged; those before are only run.
    """

    ids: Sequence[int]
    position: int
    read_from: int = 0


class HeadReader:
    """Reads the attention of selected heads of one model.

    Args:
        model: a decoder of transformers, whole or cut to its first layers.
        heads: (layer, head) pairs.

    Raises:
        ValueError: the model has layers that cannot be read (linear or latent attention, no eager function).
    """

    def __init__(self, model: PreTrainedModel, heads: Sequence[Head]) -> None:
        self._decoder = find_decoder(model)
        self._cache_argument = cache_argument(self._decoder)
        self._heads = list(heads)
        self._last_layer = max(layer for layer, _ in heads)
        self._by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            self._by_layer.setdefault(layer, []).append(head)
        placed = [(layer, head) for layer, found in sorted(self._by_layer.items()) for head in found]
        self._order = [placed.index(head) for head in self._heads]
        config = model.config.get_text_config()
        self._num_heads = config.num_attention_heads
        # Where an attention function cannot be given a mask of any shape (flash), the few query rows run under sdpa.
        self._kernel = config._attn_implementation or "eager"
        sdpa_or_eager = "sdpa" if getattr(self._decoder, "_supports_sdpa", False) else "eager"
        self._row_kernel = self._kernel if self._kernel in ("sdpa", "eager") else sdpa_or_eager

    @torch.no_grad()
    def prefill(
        self,
        ids: Tensor,
        cache: DynamicCache | None = None,
        chunk: int = PREFILL_TOKENS,
        on_progress: Callable[[int], object] | None = None,
    ) -> DynamicCache:
        """Run tokens after those already cached and keep their keys and values.

        Args:
            ids: token ids. # (batch, tokens)
            cache: keys and values of the tokens before, extended in place; None starts anew.
            chunk: tokens run at a time, so that activation memory does not grow with the list.
            on_progress: called with the number of tokens of each chunk that has been run.

        Returns:
            The cache, for the layers up to the last selected head.
        """
        cache = DynamicCache() if cache is None else cache
        past = cache.get_seq_length()
        if self._kernel == "eager":
            config = self._decoder.config
            row_bytes = 4 * config.num_attention_heads * (past + ids.shape[1]) * ids.shape[0]
            chunk = min(chunk, max(16, _EAGER_PREFILL_BYTES // row_bytes))
        device = self.device
        for part in (ids[:, start : start + chunk] for start in range(0, ids.shape[1], chunk)):
            positions = torch.arange(past, past + part.shape[1], device=device)[None]  # (1, tokens)
            self._run(_Pass(self._kernel, self._last_layer), part.to(device), positions, cache)
            past += part.shape[1]
            if on_progress:
                on_progress(part.numel())
        return cache

    @torch.no_grad()
    def read(
        self,
        cache: DynamicCache,
        parts: Sequence[Rows],
        *,
        key_positions: Tensor | None = None,
        late_keys: Mapping[int, Tensor] | None = None,
        late_positions: Tensor | None = None,
        hidden: int = 0,
        see_all: bool = False,
    ) -> Tensor:
        """Attention of the selected heads from each part to the cached tokens, averaged over the part's rows.

        Parts share passes of so many rows that memory stays bounded; a part sees the cached tokens and itself, never
        another part. The cache is not changed.

        Args:
            cache: keys and values of the prompt up to the parts, batch 1.
            parts: query part, null-query part, and so on.
            key_positions: position of each cached token where it is not its place. # (tokens,)
            late_keys: per layer, keys that only the selected heads see, after the cached ones (late interaction), as
                `keys_for_heads` gave them. # (key heads, late tokens, head size)
            late_positions: their positions. # (late tokens,)
            hidden: first cached tokens that the heads' attention is read without, as if they were not there; what the
                model goes on with sees them.
            see_all: refuse a head whose window hides a token that is not `hidden` from a row that is read.

        Returns:
            a(t) for each head and part, float32, late tokens after the cached ones. # (heads, parts, tokens)
        """
        found = [
            self._read_together(cache, together, key_positions, late_keys or {}, late_positions, hidden, see_all)
            for together in _passes(parts)
        ]
        return torch.cat(found, dim=1)

    def _read_together(
        self,
        cache: DynamicCache,
        parts: Sequence[Rows],
        key_positions: Tensor | None,
        late_keys: Mapping[int, Tensor],
        late_positions: Tensor | None,
        hidden: int,
        see_all: bool,
    ) -> Tensor:
        """`read` in one pass."""
        device = self.device
        cached = cache.get_seq_length()
        lengths = torch.tensor([len(part.ids) for part in parts])
        part_of = torch.arange(len(parts)).repeat_interleave(lengths)  # (rows,)
        ids = torch.tensor([[token for part in parts for token in part.ids]], device=device)  # (1, rows)
        positions = torch.cat([torch.arange(len(part.ids)) + part.position for part in parts])  # (rows,)
        rows_read = torch.cat([torch.arange(len(part.ids)) >= part.read_from for part in parts])  # (rows,)
        averages = (part_of == torch.arange(len(parts))[:, None]) & rows_read  # (parts, rows)
        keys = [torch.arange(cached) if key_positions is None else key_positions.cpu()]
        keys += [] if late_positions is None else [late_positions.cpu()]
        tokens = sum(len(found) for found in keys)
        sees = part_of[:, None] == part_of[None, :]  # (rows, rows)
        reading = _Reading(
            heads=self._by_layer,
            positions=positions.to(device),
            key_positions=torch.cat([*keys, positions]).to(device),
            visible=torch.cat([torch.ones(len(part_of), tokens, dtype=torch.bool), sees], dim=1).to(device),
            averages=(averages / averages.sum(dim=1, keepdim=True)).float().to(device),
            cached=cached,
            tokens=tokens,
            late_keys=late_keys,
            hidden=hidden,
            must_see=rows_read.to(device) if see_all else None,
        )
        self._run(
            _Pass(self._row_kernel, self._last_layer, reading), ids, reading.positions[None], read_only_copy(cache)
        )
        missing = self._by_layer.keys() - reading.found.keys()
        if missing:
            raise ValueError(
                f"{type(self._decoder).__name__} did not call the attention interface in layers {sorted(missing)}; "
                "expected a stock transformers model whose every attention layer does"
            )
        found = torch.cat([reading.found[layer].to(device) for layer in sorted(reading.found)])
        return found[self._order]

    def keys_for_heads(self, layer_keys: Sequence[Tensor]) -> dict[int, Tensor]:
        """Of all layers' keys, those that the selected heads look at.

        Args:
            layer_keys: keys of every layer up to the last selected head. # each (..., key heads, tokens, head size)

        Returns:
            Per layer with selected heads. # (..., key heads needed, tokens, head size)
        """
        found = {}
        for layer, heads in self._by_layer.items():
            keys = layer_keys[layer]
            found[layer] = keys[..., _key_heads(heads, self._num_heads // keys.shape[-3]), :, :]
        return found

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device that the embedding runs on."""
        embedding = self._decoder.get_input_embeddings()
        hook = getattr(embedding, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return embedding.weight.device if device is None else torch.device(device)

    def _run(self, current: "_Pass", ids: Tensor, positions: Tensor, cache: DynamicCache) -> None:
        view = view_of(self._decoder, self._last_layer + 1, _NAME)
        token = _PASS.set(current)
        try:
            view(input_ids=ids, position_ids=positions, use_cache=True, **{self._cache_argument: cache})
        except _LastHeadReadError:
            pass
        else:
            raise ValueError(
                f"{type(self._decoder).__name__} ended without calling the attention interface in layer "
                f"{self._last_layer}; expected a stock transformers model whose every attention layer does"
            )
        finally:
            _PASS.reset(token)


def _passes(parts: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Parts that run together: attention of the rows to each other grows with the square of their number."""
    together: list[Rows] = []
    rows = 0
    for part in parts:
        if together and rows + len(part.ids) > _ROWS_AT_ONCE:
            yield together
            together, rows = [], 0
        together.append(part)
        rows += len(part.ids)
    yield together


class _LastHeadReadError(Exception):
    """Ends a pass at the last selected head; never leaves this file."""


@dataclass(frozen=True)
class _Reading:
    heads: Mapping[int, list[int]]
    positions: Tensor  # (rows,)
    key_positions: Tensor  # (tokens + rows,)
    visible: Tensor  # (rows, tokens + rows)
    averages: Tensor  # (parts, rows)
    cached: int
    tokens: int  # cached and late ones
    late_keys: Mapping[int, Tensor]
    hidden: int
    must_see: Tensor | None  # (rows,)
    found: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pass:
    kernel: str
    last_layer: int
    reading: _Reading | None = None


_PASS: ContextVar[_Pass] = ContextVar("qrhead_pass")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a view: reads the selected heads of this layer, then attends as the model would."""
    current = _PASS.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    reading = current.reading
    if reading is not None:
        if layer in reading.heads:
            reading.found[layer] = _read_layer(reading, layer, module, query, key, attention_mask, options)
        if attention_mask is not None:  # late tokens are for the selected heads alone
            shared = attention_mask[..., : reading.cached], attention_mask[..., reading.tokens :]
            attention_mask = torch.cat(shared, dim=-1)
    if layer == current.last_layer:
        raise _LastHeadReadError
    attend = eager_function(module) if current.kernel == "eager" else ALL_ATTENTION_FUNCTIONS[current.kernel]
    return attend(module, query, key, value, attention_mask, **options)  # type: ignore[misc]


def _read_layer(
    reading: _Reading,
    layer: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """a(t) of this layer's selected heads over the parts' rows. # (heads, parts, tokens)"""
    if mask is None:
        raise ValueError(
            f"{type(module).__name__} was given no mask for the query rows; expected a model that builds its masks "
            "with transformers.masking_utils"
        )
    seen = mask if mask.dtype == torch.bool else mask == 0
    to_see = slice(reading.hidden, reading.tokens)
    if reading.must_see is not None and not bool(seen[0, 0, reading.must_see.to(seen.device), to_see].all()):
        raise ValueError(
            f"layer {layer} attends within a window that hides part of the documents from the query; expected every "
            "document token in sight: use smaller pieces (piece_tokens=), heads of layers without a window, or listwise"
        )
    heads = reading.heads[layer]
    group = query.shape[1] // key.shape[1]
    keys = key[:, [head // group for head in heads]].float()  # (1, heads, cached + rows, head size)
    if layer in reading.late_keys:
        needed = _key_heads(heads, group)
        late = reading.late_keys[layer].to(keys)[None, [needed.index(head // group) for head in heads]]
        keys = torch.cat([keys[:, :, : reading.cached], late, keys[:, :, reading.cached :]], dim=2)
    additive = torch.where(seen, 0.0, torch.finfo(torch.float32).min)  # (1, 1, rows, tokens + rows)
    additive[..., : reading.hidden] = torch.finfo(torch.float32).min
    weights = eager_weights(module, heads, query[:, heads].float(), keys, additive, options)
    return reading.averages.to(weights.device) @ weights[0, :, :, : reading.tokens]


def _key_heads(heads: Sequence[int], group: int) -> list[int]:
    """Key heads that some query heads of a layer look at."""
    return sorted({head // group for head in heads})


def _mask(*, mask_function: Callable[..., Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """The mask of a view: the kernel's own for documents; for the query rows, by position and by part."""
    current = _PASS.get()
    if current.reading is None:
        make: Callable[..., Tensor | None] = ALL_MASK_ATTENTION_FUNCTIONS[current.kernel]
        return make(mask_function=mask_function, dtype=dtype, **options)
    reading = current.reading
    origin = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=reading.positions.device)
    # A family's own pattern (causal, window, chunk) is asked about positions, not about places in the cache.
    pattern = mask_function(
        origin, origin, reading.positions[None, None, :, None], reading.key_positions[None, None, None, :]
    )
    mask = pattern & reading.visible  # (1, 1, rows, tokens + rows)
    if current.kernel == "eager":
        return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)
    return mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
