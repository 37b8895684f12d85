"""Passages run through the model one by one, in batches between which other threads have their turn."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from qrhead_rag.core.model_view import cache_of, layer_tensors
from qrhead_rag.core.prompt import CONSTANT_LABEL
from qrhead_rag.ranking.context import ListContext
from qrhead_rag.ranking.pieces import PassagePieces, Piece, PieceToRun, batches
from qrhead_rag.ranking.progress import progress_bar
from qrhead_rag.ranking.store import ListStore

_LABEL_TOKENS = 8  # by which the number of a text's tokens may change where a label stands before it, generously
_LONG_TOKEN = 8  # characters a token: a text with more of them is likely to be cut
_TOKENIZED_TOGETHER = 64  # texts, which take a few milliseconds: less than a batch through the model

_CPU_BATCH = 1024
_ACCELERATOR_BATCH = 4096, 65536  # at least, at most
_BYTES_A_TOKEN = 2**20  # free memory for it: keys, values and activations of a 7B model take about 0.7 MB

Keep: TypeAlias = Callable[[Tensor, list[Tensor], list[Tensor]], Piece]
"""What a mode keeps of a piece, of its offsets and all keys and values: see `PerPassage`."""


def batch_tokens_of(device: torch.device) -> int:
    """Tokens that run through the model together on a device, where `batch_tokens` does not say how many.

    A CPU is not faster with more than 1024, which stay in its caches. An accelerator takes a token for each MiB of free
    memory, at least 4096, and at most 65536; where its free memory is not known, 4096.

    >>> batch_tokens_of(torch.device("cpu"))
    1024
    """
    if device.type == "cpu":
        return _CPU_BATCH
    least, most = _ACCELERATOR_BATCH
    return min(max(least, _free_bytes(device) // _BYTES_A_TOKEN), most)


def _free_bytes(device: torch.device) -> int:
    """Memory that torch can still use on an accelerator, that which it has reserved itself included; 0: not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    return 0


def encode_passages(
    store: ListStore, keep: Keep, texts: Iterable[str], show_progress: bool = False
) -> dict[str, PassagePieces]:
    """Encode passages, those of like length together.

    Whoever calls it holds the lock once, and gives way between batches: what the lock protects may have changed when
    this returns. Pieces that another thread has run meanwhile, or that any list of the retriever holds, are not run
    again.

    Args:
        store: of the retriever.
        keep: what is kept.
        texts: the passages, each once.
        show_progress: show a progress bar, in tokens.
    """
    context = store.context
    to_run = _cut(context, texts)
    opening = store.opening.cache().get_seq_length()
    pieces: dict[str, dict[int, Piece]] = {text: {} for text in texts}
    left = Counter(piece.text for piece in to_run)
    total = sum(len(piece.ids) for piece in to_run)
    batch_tokens = context.options.batch_tokens or batch_tokens_of(context.reader.device)
    ran = False
    with progress_bar(total, "encoding", "token", show_progress) as advance:
        for batch in batches(to_run, batch_tokens, opening):
            if ran and any(_key(piece) not in store.pieces for piece in batch):
                context.lock.give_way()
                ran = False
            known = {key: encoded for key in map(_key, batch) if (encoded := store.pieces.get(key)) is not None}
            missing = [piece for piece in batch if _key(piece) not in known]
            if missing:
                new = dict(zip(map(_key, missing), _run(store, keep, missing), strict=True))
                store.pieces.update(new)
                known, ran = known | new, True
            for piece in batch:
                pieces[piece.text][piece.number] = known[_key(piece)]
                left[piece.text] -= 1
                advance(len(piece.ids))
            if store.stored is not None:  # at once, so that an interruption loses one batch at most
                whole = [text for text in dict.fromkeys(piece.text for piece in batch) if not left[text]]
                store.stored.write({text: PassagePieces.in_order(pieces[text]) for text in whole})
    return {text: PassagePieces.in_order(numbered) for text, numbered in pieces.items()}


def _cut(context: ListContext, texts: Iterable[str]) -> list[PieceToRun]:
    """The pieces of some passages, tokenized."""
    tokenizer, label = context.tokenizer, len(CONSTANT_LABEL)
    limit = None if context.options.piece_tokens is None else context.longest_piece()
    to_run = []
    for index, text in enumerate(texts):
        if index % _TOKENIZED_TOGETHER == _TOKENIZED_TOGETHER - 1:
            context.lock.give_way()
        if limit is None or len(text) <= _LONG_TOKEN * limit:
            ids, offsets = tokenizer.passage(text)
            if limit is None or len(ids) + _LABEL_TOKENS <= limit:
                to_run.append(PieceToRun(text, 0, ids, tuple(offsets)))
                continue
        for number, (start, end) in enumerate(tokenizer.sentences(text, limit)):
            ids, offsets = tokenizer.passage(text[start:end])
            moved = tuple((a, b) if b <= label else (max(a, label) + start, b + start) for a, b in offsets)
            to_run.append(PieceToRun(text, number, ids, moved))
    return to_run


def _key(piece: PieceToRun) -> tuple[str, int]:
    return piece.text, piece.number


def _run(store: ListStore, keep: Keep, batch: Sequence[PieceToRun]) -> list[Piece]:
    """Run some pieces together, each after the opening."""
    context, opening = store.context, store.opening.cache()
    start, length = opening.get_seq_length(), max(len(piece.ids) for piece in batch)
    # Shape: (pieces, tokens). Nothing sees the padding.
    ids = torch.tensor([piece.ids + [0] * (length - len(piece.ids)) for piece in batch])
    before = ([tensor.expand(len(batch), -1, -1, -1) for tensor in tensors] for tensors in layer_tensors(opening))
    cache = context.reader.prefill(ids, cache_of(*before), context.options.prefill_tokens)
    keys, values = ([tensor[:, :, start:] for tensor in tensors] for tensors in layer_tensors(cache))
    pieces = []
    for row, piece in enumerate(batch):
        offsets = torch.tensor(piece.offsets, dtype=torch.int32)
        own = ([tensor[row, :, : len(piece.ids)] for tensor in tensors] for tensors in (keys, values))
        pieces.append(keep(offsets, *own))
    return pieces
