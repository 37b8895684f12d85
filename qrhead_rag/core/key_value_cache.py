"""Keys and values of tokens that were run, as transformers caches them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


def crop(cache: DynamicCache, tokens: int) -> None:
    """Forget every cached token from place `tokens` on, and let go of its memory."""
    for layer in cache.layers:
        if layer.keys.shape[-2] > tokens:
            layer.keys, layer.values = layer.keys[..., :tokens, :].clone(), layer.values[..., :tokens, :].clone()


def cache_bytes(cache: DynamicCache | None) -> int:
    """Bytes of a cache's keys and values."""
    return sum(tensor.nbytes for tensors in layer_tensors(cache) for tensor in tensors) if cache is not None else 0


def layer_tensors(cache: DynamicCache) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of each layer. # each (batch, key heads, tokens, head size)"""
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


def cache_of(keys: Sequence[Tensor], values: Sequence[Tensor]) -> DynamicCache:
    """A cache that holds given keys and values. # each (batch, key heads, tokens, head size)"""
    cache = DynamicCache()
    for key, value in zip(keys, values, strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


class _ReadOnlyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that shows later tokens the cached ones and forgets the later ones."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def read_only_copy(cache: DynamicCache) -> DynamicCache:
    """The same keys and values, which a pass sees and does not change."""
    copied = DynamicCache()
    for layer in cache.layers:
        read_only = _ReadOnlyLayer()
        read_only.__dict__.update(layer.__dict__)
        copied.layers.append(read_only)
    return copied
