"""`listwise`, the published mode: all documents in one causal sequence, each seeing those before it.

The document part does not depend on the query: its keys and values, and what the null query finds, serve every later
query on the same list, and a list that grows at its end costs the part from its first changed token on.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.attention import Rows
from qrhead_rag.core.heads import Readout
from qrhead_rag.core.model_view import cache_bytes, crop, layer_tensors
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import NULL_QUERY, ListLayout, Prompt, Span
from qrhead_rag.core.reading import Reading
from qrhead_rag.core.scoring import OUTSIDE, check_finite, document_of_tokens
from qrhead_rag.ranking.asking import Baseline, ask, rows_to_read
from qrhead_rag.ranking.context import check_length
from qrhead_rag.ranking.progress import progress_bar
from qrhead_rag.ranking.store import ListStore


class ListwiseList:
    """A list of passages in one prompt, with its keys and values once it has been run."""

    READING_VERSION: ClassVar = 1
    """Raised whenever the scores of this mode change, so that recordings made before are not reused."""

    def __init__(self, store: ListStore) -> None:
        self._store, self._context = store, store.context
        self._indices: list[int] = []  # in the caller's list, of each document in the prompt
        self._layout: ListLayout | None = None  # None where there is nothing to read
        self._last_laid_out: tuple[list[str], ListLayout] | None = None
        self._ids: list[int] = []  # of the tokens in the cache
        self._cache: DynamicCache | None = None
        self._baseline: Baseline | None = None
        self.truncated: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and the baseline."""
        return cache_bytes(self._cache) + (0 if self._baseline is None else self._baseline.nbytes)

    def needs_windows(self, passages: Sequence[Passage], query: str) -> bool:
        """Whether several documents, as they are, and the query do not fit one prompt.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        _, contents = self._to_read(passages)
        limit = self._context.context_length
        if len(contents) < 2 or limit is None or self._lay_out(contents).num_tokens(query) <= limit:
            return False
        self._context.room(query)
        return True

    def set_passages(self, passages: Sequence[Passage], query: str | None = None) -> None:
        """Lay the list into the prompt.

        Raises:
            ListTooLongError: it does not fit the context; the list stays what it was.
        """
        context, clipped = self._context, set[int]()
        indices, contents = self._to_read(passages)
        layout = self._lay_out(contents) if contents else None
        limit = context.context_length
        if layout and limit is not None and layout.num_tokens(query) + context.reserve(query) > limit:
            contents, clipped = context.clip(contents, context.room(query))
            layout = context.tokenizer.lay_out(context.template, contents) if clipped else layout
            self._check_fits(layout.num_tokens(query))
        truncated = frozenset(indices[number] for number in clipped)
        self._indices, self._layout, self.truncated = indices, layout, truncated  # at once, whatever interrupts

    def run(self, show_progress: bool = False) -> None:
        """Run everything before the query span."""
        if self._layout is not None:
            self._run(self._layout.ids, show_progress)

    def ask(self, queries: Sequence[str]) -> list[Reading]:
        """What every selected head reads of the list, for each query; the queries share passes.

        Raises:
            ListTooLongError: the list does not fit the context together with a query.
            FloatingPointError: attention that is not finite.
        """
        context, layout = self._context, self._layout
        if layout is None or not queries:
            return [Reading.of_nothing(context.readout, len(context.heads)) for _ in queries]
        prompts = [layout.prompt(query) for query in queries]
        self._check_fits(max(len(prompt.ids) for prompt in prompts))
        first = prompts[0]
        cache = self._run(first.ids[: first.query_start])
        piece_of = document_of_tokens(first.documents, len(self._ids))
        indices = torch.tensor(self._indices)
        document_of = indices[piece_of].where(piece_of != OUTSIDE, OUTSIDE)

        def attend(parts: Sequence[Rows]) -> Tensor:
            attention = context.reader.read(cache, parts)
            check_finite(attention, context.heads, document_of, lambda: (keys[0] for keys in layer_tensors(cache)[0]))
            return attention

        answers = ask(
            context.readout,
            attend,
            [self._rows(context.readout, prompt) for prompt in prompts],
            lambda: self._rows(context.readout, layout.prompt(NULL_QUERY)),
            self._baseline,
            piece_of,
            len(indices),
        )
        self._baseline = answers.baseline
        labels = {index: f"[{number}] " for number, index in enumerate(self._indices, start=1)}
        offsets = torch.tensor(first.offsets[: len(piece_of)], dtype=torch.int32)
        return [
            Reading(context.readout, by_head, piece_of, indices, offsets, labels, strengths)
            for by_head, strengths in zip(answers.by_head, answers.strengths, strict=True)
        ]

    def _rows(self, readout: Readout, prompt: Prompt) -> Rows:
        """The rows of a prompt that a readout reads, after the tokens in the cache."""
        cached = len(self._ids)
        start, end = prompt.query_tokens
        query_tokens = Span(start - cached, end - cached)
        return rows_to_read(readout, prompt.ids[cached:], cached, prompt.query_start - cached, query_tokens)

    def keep(self, key: str) -> None:
        """Leave the whole state in the retriever's cache."""
        self._store.cache.put(key, self)

    def recall(self) -> None:
        """Nothing: the cache holds the state itself."""

    def _to_read(self, passages: Sequence[Passage]) -> tuple[list[int], list[str]]:
        """Indices and contents of the documents that are not blank, in the order of the prompt."""
        indices = [index for index, passage in enumerate(passages) if not passage.is_blank]
        if self._context.options.layout == "reversed":
            indices.reverse()
        return indices, [passages[index].content for index in indices]

    def _lay_out(self, contents: list[str]) -> ListLayout:
        """The layout of documents as they are; that of the same documents is used again."""
        last = self._last_laid_out
        if last is None or last[0] != contents:
            last = contents, self._context.tokenizer.lay_out(self._context.template, contents)
            self._last_laid_out = last
        return last[1]

    def _check_fits(self, tokens: int) -> None:
        remedy = (
            "use QRRetriever.rank, which reads long lists in sliding windows, the mode 'independent', which has no "
            "such limit, or a shorter list or query"
        )
        check_length("the list with its query", tokens, self._context.context_length, remedy)

    def _run(self, ids: list[int], show_progress: bool = False) -> DynamicCache:
        """Keys and values of everything before the query span, run from the first changed token on."""
        cache, cached = self._cache, self._ids
        if cache is not None and ids == cached:
            return cache
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, cached, strict=False)))
        self._cache, self._ids, self._baseline = None, [], None  # an interrupted pass leaves nothing half done
        if cache is not None:
            crop(cache, common)
        if ids[common:]:
            missing, chunk = torch.tensor([ids[common:]]), self._context.options.prefill_tokens
            with progress_bar(missing.numel(), "encoding", "token", show_progress) as advance:
                cache = self._context.reader.prefill(missing, cache, chunk, advance)
        assert cache is not None  # a prompt has at least one token before its query span
        self._cache, self._ids = cache, ids
        return cache
