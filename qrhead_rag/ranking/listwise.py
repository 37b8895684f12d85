"""`listwise`, the published mode: all documents in one causal sequence, each seeing those before it.

The document part does not depend on the query: its keys and values, and what the null query finds, serve every later
query on the same list, and a list that grows at its end costs the part from its first changed token on.
"""

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicCache

from qrhead_rag.core.attention import Rows
from qrhead_rag.core.model_view import cache_bytes, crop, layer_tensors
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.prompt import NULL_QUERY, Prompt
from qrhead_rag.core.scoring import OUTSIDE, Reading, calibrate, check_finite, document_of_tokens
from qrhead_rag.ranking.context import ListContext, ListTooLongError


class ListwiseList:
    """A list of passages in one prompt, with its keys and values once it has been run."""

    def __init__(self, encoder: ListContext) -> None:
        self._encoder = encoder
        self._ids: list[int] = []
        self._cache: DynamicCache | None = None
        self._null: Tensor | None = None  # (heads, tokens)
        self.truncated: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and what the null query found."""
        return cache_bytes(self._cache) + (0 if self._null is None else self._null.nbytes)

    def set_passages(self, passages: Sequence[Passage], query: str | None) -> None:
        """Lay the list into the prompt.

        Raises:
            ListTooLongError: it does not fit the context; the list stays what it was.
        """
        encoder = self._encoder
        shown = [place for place, passage in enumerate(passages) if not passage.is_blank]
        if encoder.options.layout == "reversed":
            shown.reverse()
        contents, clipped = [passages[place].content for place in shown], set[int]()
        if shown and not encoder.fits(contents, query):
            contents, clipped = encoder.clip(contents, encoder.room(query))
            longest = encoder.longest_question(query)
            self._check_fits(encoder.tokenizer.prompt(encoder.template, contents, longest))
        truncated = frozenset(shown[place] for place in clipped)
        self._shown, self._contents, self.truncated = shown, contents, truncated  # at once, whatever interrupts

    def run(self, show_progress: bool = False) -> None:
        """Run everything before the query span."""
        self._run(self._prompt(NULL_QUERY), show_progress)

    def read(self, queries: Sequence[str]) -> list[Reading]:
        """c(t) of every selected head, for each query; the queries share passes.

        Raises:
            ListTooLongError: the list does not fit the context together with a query.
            FloatingPointError: attention that is not finite.
        """
        encoder = self._encoder
        prompts = [self._prompt(query) for query in queries]
        for prompt in prompts:
            self._check_fits(prompt)
        cache = self._run(prompts[0])
        wanted = prompts if self._null is not None else [*prompts, self._prompt(NULL_QUERY)]
        cached = len(self._ids)
        parts = [Rows(p.ids[cached:], position=cached, read_from=p.query_start - cached) for p in wanted]
        attention = encoder.reader.read(cache, parts).cpu()  # (heads, parts, tokens)
        document_of = document_of_tokens(prompts[0].documents, cached)
        shown = torch.tensor(self._shown)
        place_of = shown[document_of].where(document_of != OUTSIDE, OUTSIDE)
        check_finite(attention, encoder.heads, place_of, {n: k[0] for n, k in enumerate(layer_tensors(cache)[0])})
        if self._null is None:
            self._null = attention[:, -1].clone()
        labels = {place: f"[{number}] " for number, place in enumerate(self._shown, start=1)}
        offsets = torch.tensor(prompts[0].offsets[:cached], dtype=torch.int32)
        return [
            Reading(calibrate(attention[:, number], self._null), document_of, shown, offsets, labels)
            for number in range(len(queries))
        ]

    def _prompt(self, query: str) -> Prompt:
        return self._encoder.tokenizer.prompt(self._encoder.template, self._contents, query)

    def _check_fits(self, prompt: Prompt) -> None:
        limit = self._encoder.context_length
        if limit is not None and len(prompt.ids) > limit:
            raise ListTooLongError(
                f"the list with its query is {len(prompt.ids)} tokens long, the context of the model {limit}; use "
                "QRRetriever.rank, which reads long lists in sliding windows, the mode 'independent', which has no "
                "such limit, or a shorter list or query"
            )

    def _run(self, prompt: Prompt, show_progress: bool = False) -> DynamicCache:
        """Keys and values of everything before the query span, run from the first changed token on."""
        ids = prompt.ids[: prompt.query_start]
        cache, cached = self._cache, self._ids
        if cache is not None and ids == cached:
            return cache
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, cached, strict=False)))
        self._cache, self._ids, self._null = None, [], None  # an interrupted pass leaves nothing half done
        if cache is not None:
            crop(cache, common)
        if ids[common:]:
            missing, chunk = torch.tensor([ids[common:]]), self._encoder.options.prefill_tokens
            with tqdm(total=missing.numel(), desc="encoding", unit="token", disable=not show_progress) as bar:
                cache = self._encoder.reader.prefill(missing, cache, chunk, bar.update)
        assert cache is not None  # a prompt has at least one token before its query span
        self._cache, self._ids = cache, ids
        return cache
