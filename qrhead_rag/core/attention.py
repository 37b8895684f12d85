"""Token ids to the attention of selected heads, on stock transformers models and on any device.

A pass runs through a view of the model (model_view.py), whose layers call the function of attention_function.py.
Documents run under the model's own fast kernel. For the query rows the weights of the selected heads are computed as
the eager attention function of the model's family computes them (attention_weights.py), in float32, for those rows and
heads alone. No layer above the last selected head runs, and of that layer nothing after its
attention.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.attention_function import (
    ATTENTION,
    Context,
    Pass,
    PassRows,
    RowReading,
    key_heads,
    run_pass,
)
from qrhead_rag.core.heads import Head
from qrhead_rag.core.model_view import (
    cache_argument,
    cache_bytes,
    cache_of,
    crop,
    find_decoder,
    join,
    layer_tensors,
    read_only_copy,
    view_of,
)

PREFILL_TOKENS = 2048
_EAGER_PREFILL_BYTES = 128 * 2**20
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Rows:
    """Tokens that follow the cached ones, see them, and see each other: a query part or a null-query part.

    Attributes:
        ids: the tokens.
        position: position of the first token.
        readings: rows, counted from the first token, whose mean is read: one reading each. None is one of all rows.

    >>> Rows([17, 4, 9], position=60, readings=(range(0, 2), range(2, 3)))  # the mean of two rows, and the third
    Rows(ids=[17, 4, 9], position=60, readings=(range(0, 2), range(2, 3)))
    """

    ids: Sequence[int]
    position: int
    readings: tuple[range, ...] | None = None

    @property
    def rows_by_reading(self) -> tuple[range, ...]:
        """The rows of each reading."""
        return (range(len(self.ids)),) if self.readings is None else self.readings


@dataclass
class QueryPrefix:
    """Tokens after the cached ones that parts begin with: run with the first parts, and not again with later ones.

    Attributes:
        ids: the tokens.
        position: position of the first token.
        cache: keys and values of the cached tokens and of these, once they have been run.
        queries: queries of the selected heads, by layer. Shape: each (1, heads, tokens, head size)

    >>> reader = HeadReader(model, heads=[(1, 0)])
    >>> cache, prefix = reader.prefill(torch.arange(9)[None]), QueryPrefix([3, 4], position=9)
    >>> attention = reader.read(cache, [Rows([3, 4, 7], position=9)], prefix=prefix)
    >>> again = reader.read(cache, [Rows([3, 4, 7], position=9)], prefix=prefix)  # runs the last row alone
    >>> torch.allclose(again, attention, atol=1e-6)
    True
    """

    ids: Sequence[int]
    position: int
    cache: DynamicCache | None = None
    queries: dict[int, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return cache_bytes(self.cache) + sum(tensor.nbytes for tensor in self.queries.values())


class HeadReader:
    """Reads the attention of selected heads of one model.

    Args:
        model: a decoder of transformers, whole or cut to its first layers.
        heads: (layer, head) pairs.

    Raises:
        ValueError: the model has layers that cannot be read (linear or latent attention, no eager function).

    >>> from transformers import LlamaConfig, LlamaModel
    >>> sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    >>> reader = HeadReader(LlamaModel(LlamaConfig(**sizes)), heads=[(1, 0)])
    >>> cache = reader.prefill(torch.arange(9)[None])
    >>> reader.read(cache, [Rows([3, 4], position=9), Rows([7], position=9)]).shape  # (heads, parts, tokens)
    torch.Size([1, 2, 9])
    """

    def __init__(self, model: PreTrainedModel, heads: Sequence[Head]) -> None:
        self._decoder = find_decoder(model)
        self._cache_argument = cache_argument(self._decoder)
        self._last_layer = max(layer for layer, _ in heads)
        self._heads_by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            self._heads_by_layer.setdefault(layer, []).append(head)
        self._plain: dict[int, bool] = {}  # whether a layer's weights are the plain softmax, once it was read
        # A pass gives the heads layer by layer; the caller gets them in the order of `heads`.
        by_layer = [(layer, head) for layer, in_layer in sorted(self._heads_by_layer.items()) for head in in_layer]
        self._order = [by_layer.index(head) for head in heads]
        config = model.config.get_text_config()
        self._num_heads = config.num_attention_heads
        # Flash attention takes no mask of any shape: it runs documents, and the few query rows run under sdpa.
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
            ids: token ids. Shape: (batch, tokens)
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
            self._run(Pass(self._kernel, self._last_layer), part.to(device), positions, cache)
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
        prefix: QueryPrefix | None = None,
        key_positions: Tensor | None = None,
        late_keys: Tensor | None = None,
        late_positions: Tensor | None = None,
        hidden: int = 0,
        see_all: bool = False,
    ) -> Tensor:
        """Attention of the selected heads from each part to the cached tokens: the mean of some rows a reading.

        Parts share passes of so many rows that memory stays bounded; a part sees the cached tokens and itself, never
        another part. The cache is not changed.

        Args:
            cache: keys and values of the prompt up to the parts, batch 1.
            parts: query part, null-query part, and so on.
            prefix: rows that every part begins with, and goes on after; always with this cache.
            key_positions: position of each cached token where it is not its index. Shape: (tokens,)
            late_keys: keys that only the selected heads see, after the cached ones (late interaction), as
                `keys_for_heads` gives them. Shape: (late tokens, dimensions)
            late_positions: their positions. Shape: (late tokens,)
            hidden: first cached tokens that the heads' attention is read without, as if they were not there; the
                layers themselves see them.
            see_all: refuse a head whose window hides a token that is not `hidden` from a row that is read.

        Returns:
            a(t) for each head and reading, those of a part together, in float32, late tokens after the cached ones.
            Shape: (heads, readings, tokens)
        """
        cached = cache.get_seq_length()
        positions = [torch.arange(cached) if key_positions is None else key_positions.cpu()]
        positions += [] if late_positions is None else [late_positions.cpu()]
        late_by_layer = {} if late_keys is None else self.by_layer(late_keys, cache)
        context = Context(torch.cat(positions).to(self.device), cached, late_by_layer, hidden, see_all)
        passes = [self._read_pass(cache, prefix, context, group) for group in group_parts(parts)]
        return torch.cat(passes, dim=1) if len(passes) > 1 else passes[0]

    def _read_pass(
        self, cache: DynamicCache, prefix: QueryPrefix | None, context: Context, parts: Sequence[Rows]
    ) -> Tensor:
        """`read` for parts that share one pass, which runs the rows that they begin with if no pass has."""
        device, before = self.device, len(prefix.ids) if prefix else 0
        rows = _rows_of_pass(parts, before, device)
        reading = RowReading(self._heads_by_layer, context, rows, prefix.queries if prefix else {}, plain=self._plain)
        ids = [token for part in parts for token in part.ids[before:]]
        new_prefix = prefix if prefix and prefix.cache is None else None
        if new_prefix is None:
            run_after = read_only_copy(cache if prefix is None or prefix.cache is None else prefix.cache)
        else:
            ids = [*new_prefix.ids, *ids]
            run_after = cache_of(*layer_tensors(cache))  # shares its tensors, and joins what follows into new ones
        one_pass = Pass(self._row_kernel, self._last_layer, reading)
        self._run(one_pass, torch.tensor([ids], device=device), rows.positions[None, -len(ids) :], run_after)
        missing = self._heads_by_layer.keys() - reading.attention.keys()
        if missing:
            raise ValueError(
                f"{type(self._decoder).__name__} did not call the attention interface in layers {sorted(missing)}; "
                "expected a stock transformers model whose every attention layer does"
            )
        if new_prefix is not None:
            crop(run_after, context.cached + before)
            new_prefix.queries = {layer: queries[:, :, :before].clone() for layer, queries in reading.queries.items()}
            new_prefix.cache = run_after
        by_head = [head for _, attention in sorted(reading.attention.items()) for head in attention]
        return torch.stack([by_head[number].to(device) for number in self._order])

    def keys_for_heads(self, layer_keys: Sequence[Tensor]) -> Tensor:
        """Of all layers' keys, those that the selected heads look at, side by side: a row for each token.

        Args:
            layer_keys: keys of every layer up to the last selected head.
                Shape: each (..., key heads, tokens, head size)

        Returns:
            Layer by layer, and key head by key head. Shape: (..., tokens, dimensions)
        """
        needed = []
        for layer, heads in sorted(self._heads_by_layer.items()):
            keys = layer_keys[layer]
            keys = keys[..., key_heads(heads, self._num_heads // keys.shape[-3]), :, :]
            needed.append(keys.transpose(-3, -2).flatten(-2).to(self.device))  # (..., tokens, key heads * head size)
        return join(needed, dim=-1)

    def by_layer(self, keys: Tensor, cache: DynamicCache) -> dict[int, Tensor]:
        """What `keys_for_heads` gave, as views by layer.

        Args:
            keys: side by side. Shape: (tokens, dimensions)
            cache: any of this model, which has been filled.

        Returns:
            Shape: each (key heads needed, tokens, head size)
        """
        by_layer, start = {}, 0
        for layer, heads in sorted(self._heads_by_layer.items()):
            _, num_key_heads, _, size = cache.layers[layer].keys.shape
            needed = len(key_heads(heads, self._num_heads // num_key_heads))
            end = start + needed * size
            by_layer[layer] = keys[:, start:end].view(-1, needed, size).transpose(0, 1)
            start = end
        return by_layer

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device that the embedding runs on."""
        embedding = self._decoder.get_input_embeddings()
        hook = getattr(embedding, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return embedding.weight.device if device is None else torch.device(device)

    def _run(self, current: Pass, ids: Tensor, positions: Tensor, cache: DynamicCache) -> None:
        view = view_of(self._decoder, self._last_layer + 1, ATTENTION)
        inputs = {"input_ids": ids, "position_ids": positions, self._cache_argument: cache}
        # The model runs in its own dtype and is read in float32, also where a caller casts what runs.
        with torch.autocast(self.device.type, enabled=False):
            run_pass(view, current, **inputs, use_cache=True)


def group_parts(parts: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Parts that run together: attention of the rows to each other grows with the square of their number."""
    group: list[Rows] = []
    rows = 0
    for part in parts:
        if group and rows + len(part.ids) > _ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += len(part.ids)
    yield group


def _rows_of_pass(parts: Sequence[Rows], before: int, device: torch.device) -> PassRows:
    """The rows of some parts; the first ones, which are the same in all parts, come once."""
    lengths = torch.tensor([len(part.ids) - before for part in parts])
    part_of = torch.cat([torch.full((before,), -1), torch.arange(len(parts)).repeat_interleave(lengths)])  # (rows,)
    positions = [torch.arange(before) + parts[0].position]
    positions += [torch.arange(before, len(part.ids)) + part.position for part in parts]
    starts = (lengths.cumsum(0) - lengths).tolist()
    readings = [
        [row if row < before else start + row for row in rows]
        for start, part in zip(starts, parts, strict=True)
        for rows in part.rows_by_reading
    ]
    read = sorted({row for rows in readings for row in rows})
    several = [number for number, rows in enumerate(readings) if len(rows) > 1]
    averages = torch.zeros(len(several), len(part_of))
    for average, number in zip(averages, several, strict=True):
        average[readings[number]] = 1 / len(readings[number])
    index_of = {row: index for index, row in enumerate(read)}
    return PassRows(
        positions=torch.cat(positions).to(device),
        same_part=((part_of[:, None] == part_of) | (part_of == -1)).to(device),
        read=torch.tensor(read, device=device),
        last=torch.tensor([index_of[rows[-1]] for rows in readings], device=device),
        several=torch.tensor(several, dtype=torch.long, device=device),
        averages=averages[:, read].to(device),
    )
