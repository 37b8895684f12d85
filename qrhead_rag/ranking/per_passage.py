"""`independent` and `late`: every passage encoded alone after the shared prefix, all at the same positions.

The order of the list cannot matter, cost is linear in the number of passages, and what was run for a passage serves
every list that it appears in. Under `independent` the query part attends to the keys and values of all passages in
every layer. Under `late` it is run without seeing any; the queries of the selected heads alone meet those heads' keys
of every passage.

The heads are read as if the opening of the prompt were not there: what they leave on its first tokens, where attention
rests that finds nothing, says little of the passages (benchmarks/reports/choices.md).

Long passages are cut into pieces that are encoded like passages; scores of a passage's best pieces are added up.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.attention import Rows
from qrhead_rag.core.model_view import cache_bytes, cache_of, layer_tensors
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import CONSTANT_LABEL, NULL_QUERY
from qrhead_rag.core.scoring import Reading, calibrate, check_finite
from qrhead_rag.ranking.cache import content_key
from qrhead_rag.ranking.context import ListContext, ListTooLongError
from qrhead_rag.ranking.pieces import JoinedPieces, PassagePieces, Piece, PieceToRun, batches, join

# Difference of its keys, by their size, that other dtypes and quantization make: 0.03 in bfloat16, 0.5 in rough int4.
# That of unrelated weights is about 1.4.
_SAME_MODEL = 0.7


class SeparateList:
    """A list of passages that are encoded alone, put together for the query."""

    def __init__(self, encoder: ListContext) -> None:
        self._encoder = encoder
        self._passages: dict[str, PassagePieces] = {}  # by content
        self._contents: dict[int, str] = {}  # by place
        self._joined: JoinedPieces | None = None
        self._prefix: DynamicCache | None = None
        self.truncated: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes held: the passages' keys and values, or those of all put together, and what the null query found."""
        if self._joined is not None:
            return self._joined.nbytes + cache_bytes(self._prefix)
        return sum(passage.nbytes for passage in self._passages.values()) + cache_bytes(self._prefix)

    def set_passages(self, passages: Sequence[Passage], query: str | None) -> None:
        """Make this the list; passages that have been run stay run.

        Under these modes only one piece has to fit the context with the query.
        """
        encoder = self._encoder
        shown = {place: passage.content for place, passage in enumerate(passages) if not passage.is_blank}
        truncated: frozenset[int] = frozenset()
        if shown and encoder.options.piece_tokens is None:
            clipped, places = encoder.clip(list(shown.values()), encoder.room(query))
            truncated = frozenset(list(shown)[place] for place in places)
            shown = dict(zip(shown, clipped, strict=True))
        wanted = set(shown.values())
        left = {text: found for text, found in self._passages.items() if text in wanted}
        if Counter(self._contents.values()) - Counter(shown.values()):
            # As slices they would keep the whole in memory, what has left it included.
            left = {text: found.on_its_own() for text, found in left.items()}
        joined = self._joined if shown == self._contents else None
        # At once, whatever interrupts.
        self._joined, self._contents, self._passages, self.truncated = joined, shown, left, truncated

    def take_over(self, other: "SeparateList") -> None:
        """Use again, for the list that is set next, what another one of the same encoder has run."""
        self._passages |= other._passages

    def run(self, show_progress: bool = False) -> None:
        """Encode the passages that no list of this retriever has encoded, those of like length together."""
        encoder = self._encoder
        prefix = self._run_prefix()
        wanted = dict.fromkeys(text for text in self._contents.values() if text not in self._passages)
        missing: list[str] = []
        for text in wanted:
            found = encoder.kept.get(content_key("passage", text))
            if found is None:
                missing.append(text)
            else:
                self._passages[text] = found
        limit = None if encoder.options.piece_tokens is None else encoder.longest_piece()
        pieces: dict[str, list[Piece | None]] = {}
        to_run = []
        for text in missing:
            ranges = [(0, len(text))] if limit is None else encoder.tokenizer.sentences(text, limit)
            pieces[text] = [None] * len(ranges)
            for number, (start, end) in enumerate(ranges):
                ids, offsets = encoder.tokenizer.passage(text[start:end])
                label = len(CONSTANT_LABEL)
                moved = tuple((a, b) if b <= label else (max(a, label) + start, b + start) for a, b in offsets)
                to_run.append(PieceToRun(text, number, ids, moved))
        total = sum(len(piece.ids) for piece in to_run)
        with tqdm(total=total, desc="encoding", unit="token", disable=not show_progress) as bar:
            for batch in batches(to_run, encoder.options.batch_tokens, prefix.get_seq_length()):
                keys, values = self._run_batch(prefix, [piece.ids for piece in batch])
                for row, piece in enumerate(batch):
                    length = len(piece.ids)
                    pieces[piece.text][piece.number] = Piece(
                        torch.tensor(piece.offsets, dtype=torch.int32),
                        {layer: tensor[row, :, :length].clone() for layer, tensor in keys.items()},
                        {layer: tensor[row, :, :length].clone() for layer, tensor in values.items()},
                    )
                    bar.update(length)
        for text in missing:
            passage = PassagePieces(tuple(run for run in pieces[text] if run is not None))
            self._passages[text] = passage
            encoder.kept.put(content_key("passage", text), passage)

    def read(self, queries: Sequence[str]) -> list[Reading]:
        """c(t) of every selected head, for each query; the queries share passes.

        Raises:
            ListTooLongError: the longest piece does not fit the context together with a query.
            ValueError: a window hides part of a document from a head.
            FloatingPointError: attention that is not finite.
        """
        joined = self._join()
        # The first time, query and null query share a pass.
        asked = [*queries] if joined.null is not None else [*queries, NULL_QUERY]
        attention = self._attend(asked, self._query_position(joined), joined)  # (heads, queries, tokens)
        if joined.null is None:
            joined.null = attention[:, -1].clone()
        return [
            Reading(
                calibrate(attention[:, number], joined.null),
                joined.piece_of,
                joined.document_of_piece,
                joined.offsets,
                dict.fromkeys(self._contents, CONSTANT_LABEL),
            )
            for number in range(len(queries))
        ]

    def state(self) -> tuple[list[int], dict[str, Tensor]]:
        """What is kept of the list, for a file: the document of each piece, and tensors by name."""
        joined = self._join()
        tensors = {f"keys.{layer}": keys for layer, keys in joined.keys.items()}
        tensors |= {f"opening.{layer}": keys for layer, keys in self._opening_keys().items()}
        tensors["offsets"], tensors["piece_of"] = joined.offsets, joined.piece_of.to(torch.int32)
        return joined.document_of_piece.tolist(), tensors

    def restore(self, document_of_piece: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave for a list of the same texts.

        Raises:
            ValueError: the tensors do not belong together, to the texts or to the model.
        """
        self._check_state(document_of_piece, tensors)
        offsets = tensors["offsets"]
        lengths = torch.bincount(tensors["piece_of"]).tolist()
        layers = {int(name.removeprefix("keys.")): keys for name, keys in tensors.items() if name[:5] == "keys."}
        pieces: dict[int, list[Piece]] = {place: [] for place in self._contents}
        start = 0
        for place, length in zip(document_of_piece, lengths, strict=True):
            kept = slice(start, start := start + length)
            keys = {layer: tensor[:, kept].to(self._encoder.reader.device) for layer, tensor in layers.items()}
            pieces[place].append(Piece(offsets[kept], keys, {}))
        self._passages = {text: PassagePieces(tuple(pieces[place])) for place, text in self._contents.items()}
        self._joined = None

    def _check_state(self, document_of_piece: Sequence[int], tensors: dict[str, Tensor]) -> None:
        encoder = self._encoder
        tokens, dtype = len(tensors["piece_of"]), getattr(torch, encoder.options.key_dtype)
        expected = {"piece_of": (torch.int32, (tokens,)), "offsets": (torch.int32, (tokens, 2))}
        opening = self._opening_keys()
        for layer, keys in opening.items():
            expected[f"opening.{layer}"] = dtype, tuple(keys.shape)
            expected[f"keys.{layer}"] = dtype, (keys.shape[0], tokens, keys.shape[2])
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"it holds {sorted(found.items())}, expected {sorted(expected.items())}")
        for layer, keys in opening.items():
            own, other = keys.float(), tensors[f"opening.{layer}"].to(keys.device).float()
            if not float((other - own).norm()) <= _SAME_MODEL * float(own.norm()):
                raise ValueError(
                    f"its model has other weights than this one of the same name: keys of layer {layer} differ"
                )
        documents = [place for place in document_of_piece if type(place) is int]
        if documents != sorted(document_of_piece) or set(documents) != set(self._contents):
            raise ValueError("its pieces do not belong to its texts")
        piece_of, offsets = tensors["piece_of"].long(), tensors["offsets"]
        if [number for number, _ in groupby(piece_of.tolist())] != list(range(len(documents))):
            raise ValueError("its tokens do not belong to its pieces")
        ends = torch.tensor([len(CONSTANT_LABEL + self._contents[place]) for place in documents])[piece_of]
        if not bool(((offsets[:, 0] >= 0) & (offsets[:, 0] <= offsets[:, 1]) & (offsets[:, 1] <= ends)).all()):
            raise ValueError("its tokens lie outside its texts")

    def _opening_keys(self) -> dict[int, Tensor]:
        """Keys of the prompt's opening as `late` stores them, by layer. # each (key heads, tokens, head size)"""
        encoder = self._encoder
        keys = encoder.reader.keys_for_heads(layer_tensors(self._run_prefix())[0])
        return {layer: tensor[0].to(getattr(torch, encoder.options.key_dtype)) for layer, tensor in keys.items()}

    def _query_position(self, joined: JoinedPieces) -> int:
        """Right after the longest piece of the list: nearer is better (benchmarks/reports/choices.md)."""
        return int(self._run_prefix().get_seq_length() + joined.places.max()) + 1

    def _attend(self, queries: Sequence[str], position: int, joined: JoinedPieces) -> Tensor:
        """a(t) over the documents' tokens. # (heads, queries, tokens)"""
        encoder = self._encoder
        parts = []
        for query in queries:
            ids, start = encoder.tokenizer.question(encoder.template, query)
            if encoder.context_length is not None and position + len(ids) > encoder.context_length:
                raise ListTooLongError(
                    f"the longest piece of the list with the query is {position + len(ids)} tokens long, the context "
                    f"of the model {encoder.context_length}; use smaller pieces (piece_tokens=) or a shorter query"
                )
            parts.append(Rows(ids, position, start))
        prefix = self._run_prefix()
        length = prefix.get_seq_length()
        if encoder.mode == "late":
            attention = encoder.reader.read(
                prefix,
                parts,
                late_keys=joined.keys,
                late_positions=joined.places + length,
                hidden=length,
                see_all=True,
            )
        else:
            positions = torch.cat([torch.arange(length), joined.places + length])
            cache = cache_of(
                [tensor[None] for tensor in joined.keys.values()], [tensor[None] for tensor in joined.values.values()]
            )
            attention = encoder.reader.read(cache, parts, key_positions=positions, hidden=length, see_all=True)
        attention = attention[:, :, length:].cpu()
        keys = {layer: tensor[:, joined.opening :] for layer, tensor in joined.keys.items()}
        check_finite(attention, encoder.heads, joined.document_of_piece[joined.piece_of], keys)
        return attention

    def _join(self) -> JoinedPieces:
        if self._joined is None:
            self.run()
            prefix = self._run_prefix() if self._encoder.mode == "independent" else None
            joined = join(self._contents, self._passages, prefix)
            # From here on the passages are held once: as slices of what was put together.
            start = 0
            for text in self._contents.values():
                sliced = []
                for piece in self._passages[text].pieces:
                    sliced.append(joined.piece(start, start := start + len(piece.offsets)))
                self._passages[text] = PassagePieces(tuple(sliced))
            self._joined = joined
        return self._joined

    def _run_batch(
        self, prefix: DynamicCache, rows: Sequence[list[int]]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Keys and values of some pieces, by layer. # each (pieces, key heads, tokens, head size)"""
        encoder = self._encoder
        start = prefix.get_seq_length()
        length = max(len(ids) for ids in rows)
        padded = torch.tensor(
            [ids + [0] * (length - len(ids)) for ids in rows]
        )  # (pieces, tokens): nothing sees padding
        keys, values = layer_tensors(prefix)
        cache = cache_of(
            [tensor.expand(len(rows), -1, -1, -1) for tensor in keys],
            [tensor.expand(len(rows), -1, -1, -1) for tensor in values],
        )
        cache = encoder.reader.prefill(padded, cache, encoder.options.prefill_tokens)
        keys, values = ([tensor[:, :, start:] for tensor in tensors] for tensors in layer_tensors(cache))
        if encoder.mode == "late":
            dtype = getattr(torch, encoder.options.key_dtype)
            return {layer: found.to(dtype) for layer, found in encoder.reader.keys_for_heads(keys).items()}, {}
        return dict(enumerate(keys)), dict(enumerate(values))

    def _run_prefix(self) -> DynamicCache:
        if self._prefix is None:
            encoder = self._encoder
            ids = encoder.tokenizer.opening(encoder.template)
            self._prefix = encoder.reader.prefill(torch.tensor([ids]), chunk=encoder.options.prefill_tokens)
        return self._prefix
