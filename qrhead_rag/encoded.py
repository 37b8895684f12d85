"""Passages encoded once, asked many times.

`listwise` is the published mode: all documents in one causal sequence, read by the query span at its end. The document part
does not depend on the query, so its keys and values, and what the null query finds, serve every later query; a list that
grows at its end costs the part from its first changed token on.
"""

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from qrhead_rag.attention import HeadReader, Rows, crop
from qrhead_rag.explain import Evidence
from qrhead_rag.heads import Head, Mode
from qrhead_rag.prompt import (
    NULL_QUERY,
    Document,
    Passage,
    Prompt,
    PromptTemplate,
    PromptTokenizer,
    as_passages,
    check_query,
)
from qrhead_rag.ranking import RankedPassage, Ranking
from qrhead_rag.scoring import (
    OUTSIDE,
    calibrate,
    check_finite,
    document_of_tokens,
    document_scores,
    masked,
)
from qrhead_rag.selection import Selection, rank_order, select

Layout: TypeAlias = Literal["given", "reversed"]

_QUERY_RESERVE = 128  # tokens kept free for a query that is not known yet


@dataclass(frozen=True)
class Encoder:
    """What every list of one retriever is encoded with.

    Attributes:
        reader: reads the selected heads.
        tokenizer: makes prompts.
        template: what stands around the documents.
        heads: (layer, head) of each row that the reader gives.
        mode: how the documents are run through the model.
        layout: whether the list is laid into the prompt as given or reversed.
        context_length: tokens that a prompt may have; None knows no limit.
        lock: held while tokenizing and running the model.
    """

    reader: HeadReader
    tokenizer: PromptTokenizer
    template: PromptTemplate
    heads: tuple[Head, ...]
    mode: Mode
    layout: Layout
    context_length: int | None
    lock: threading.RLock

    def room(self, query: str | None) -> float:
        """Tokens that a prompt has left for documents; with no query known, some are kept free for one."""
        if self.context_length is None:
            return float("inf")
        around = len(self.tokenizer.prompt(self.template, [], query or NULL_QUERY).ids)
        return self.context_length - around - (_QUERY_RESERVE if query is None else 0)

    def size(self, content: str) -> int:
        """Tokens that a document takes in the prompt, its label and separator included; an upper bound."""
        return self.tokenizer.count(f"[1000] {content}") + self.tokenizer.count(self.template.separator)

    def clip(self, contents: Sequence[str], limit: float) -> tuple[list[str], set[int]]:
        """Documents cut to `limit` tokens each, label included, and the places of those that had to be."""
        clipped, places = list(contents), set()
        for place, content in enumerate(contents):
            if len(content) > limit and self.size(content) > limit:  # a token has at least one character
                overhead = self.size("")
                clipped[place] = self.tokenizer.cut(content, max(1, int(limit) - overhead - 2))
                places.add(place)
        return clipped, places


@dataclass(frozen=True)
class Reading:
    """What one query found in one list.

    Attributes:
        calibrated: c(t) of each head. # (heads, tokens)
        document_of: place in the list of the document of each token, or OUTSIDE. # (tokens,)
        offsets: characters of each token, counted from its document's label.
        labels: label of each document that was read.
    """

    calibrated: Tensor
    document_of: Tensor
    offsets: list[tuple[int, int]]
    labels: dict[int, str]

    def head_scores(self, num_documents: int) -> Tensor:
        """s(d) of each head alone, masked by itself. # (heads, documents)"""
        contributions = masked(self.calibrated, self.document_of, num_documents)
        return document_scores(contributions, self.document_of, num_documents)

    def evidence(self, num_documents: int) -> tuple[Tensor, list[Evidence | None]]:
        """s(d) of the selected heads together, and what each document's tokens contributed. # (documents,)"""
        contributions = masked(self.calibrated.sum(dim=0), self.document_of, num_documents)  # (tokens,)
        scores = document_scores(contributions, self.document_of, num_documents)
        found: list[Evidence | None] = [None] * num_documents
        for place, label in self.labels.items():
            tokens = torch.nonzero(self.document_of == place)[:, 0]  # (tokens of the document,)
            offsets = [self.offsets[token] for token in tokens.tolist()]
            found[place] = Evidence(contributions[tokens], offsets, label)
        return scores, found


class EncodedPassages:
    """A list of passages whose keys and values are kept. Made by `QRRetriever.encode`.

    It may be shared between threads. The texts are kept; what it holds of the model is freed with it.

    Raises:
        ValueError: the list is longer than the model's context.
    """

    def __init__(self, encoder: Encoder, documents: Iterable[Document], query: str | None = None) -> None:
        self._encoder = encoder
        self._passages = as_passages(documents)
        self._ids: list[int] = []
        self._cache: DynamicCache | None = None
        self._null: Tensor | None = None  # (heads, tokens)
        self._lay_out(query)

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages)

    def extend(self, documents: Iterable[Document]) -> None:
        """Add documents at the end; only what follows the first changed token is run.

        Raises:
            ValueError: the longer list does not fit the model's context; the list stays as it was.
        """
        before = self._passages
        with self._encoder.lock:
            self._passages = before + as_passages(documents)
            try:
                self._lay_out()
            except ValueError:
                self._passages = before
                self._lay_out()
                raise

    def encode(self) -> None:
        """Run the documents now, so that the first query does not wait for them."""
        with self._encoder.lock:
            if self._shown:
                self._run_documents(self._prompt(NULL_QUERY))

    def score(self, query: str) -> list[float]:
        """s(d) of every document, in the order given. A blank one gets the lowest score of the list."""
        return self.scored(query)[0]

    def head_scores(self, query: str) -> Tensor:
        """s(d) of every document by each selected head alone. # (heads, documents)"""
        reading = self.read(query)
        if reading is None:
            return torch.zeros(len(self._encoder.heads), len(self))
        scores = reading.head_scores(len(self))
        lowest = scores[:, self._shown].amin(dim=1)  # (heads,)
        scores[:, self._blank] = lowest[:, None].expand(-1, len(self._blank))
        return scores

    def rank(self, query: str, selection: Selection | None = None, token_counts: Sequence[int] | None = None) -> Ranking:
        """The documents ordered by score, cut to a selection."""
        selection = selection or Selection()
        scores, evidence = self.scored(query)
        blank = set(self._blank)
        order = sorted(rank_order(scores), key=lambda place: place in blank)
        kept = select(scores, selection, token_counts, order) if scores else []
        return Ranking(
            query,
            tuple(RankedPassage(p, scores[p], self._passages[p], p in self.truncated) for p in kept),
            self._encoder.mode,
            _evidence=tuple(evidence),
        )

    def read(self, query: str) -> Reading | None:
        """c(t) of every selected head over the whole list; None where there is no text to read."""
        query = check_query(query)
        encoder = self._encoder
        if not self._shown:
            return None
        with encoder.lock:
            prompt = self._prompt(query)
            self._check_fits(prompt)
            cache = self._run_documents(prompt)
            parts = [_query_part(prompt, len(self._ids))]
            if self._null is None:
                parts.append(_query_part(self._prompt(NULL_QUERY), len(self._ids)))
            attention = encoder.reader.read(cache, parts).cpu()  # (heads, parts, tokens)
            spans = document_of_tokens(prompt.documents, len(self._ids))
            names = [f"document {place}" for place in self._shown]
            check_finite(attention, encoder.heads, spans, names)
            if self._null is None:
                self._null = attention[:, 1]
            shown = torch.tensor([*self._shown, OUTSIDE])  # OUTSIDE is -1, which is the last
            return Reading(
                calibrate(attention[:, 0], self._null),
                shown[spans],
                prompt.offsets[: len(self._ids)],
                {place: f"[{number}] " for number, place in enumerate(self._shown, start=1)},
            )

    def scored(self, query: str) -> tuple[list[float], list[Evidence | None]]:
        """The scores with what each document's tokens contributed; None for a document that was not read."""
        reading = self.read(query)
        if reading is None:
            return [0.0] * len(self), [None] * len(self)
        scores, evidence = reading.evidence(len(self))
        scores[self._blank] = scores[self._shown].min()
        return scores.tolist(), evidence

    def _lay_out(self, query: str | None = None) -> None:
        """Which documents stand in the prompt, in which order, and how much of each."""
        encoder = self._encoder
        contents = [passage.content for passage in self._passages]
        places = [place for place, content in enumerate(contents) if content.strip()]
        self._blank = [place for place, content in enumerate(contents) if not content.strip()]
        self._shown = places if encoder.layout == "given" else places[::-1]
        with encoder.lock:
            self._contents, clipped = encoder.clip([contents[place] for place in self._shown], encoder.room(query))
            self.truncated = frozenset(self._shown[place] for place in clipped)
            self._check_fits(self._prompt(query or NULL_QUERY))
        warn_of_truncation(self._passages, self.truncated)

    def _prompt(self, query: str) -> Prompt:
        return self._encoder.tokenizer.prompt(self._encoder.template, self._contents, query)

    def _check_fits(self, prompt: Prompt) -> None:
        limit = self._encoder.context_length
        if limit is not None and len(prompt.ids) > limit:
            raise ListTooLongError(
                f"the list with its query is {len(prompt.ids)} tokens long, the context of the model {limit}; use "
                "rank(), which reads long lists in sliding windows, the mode 'independent', which has no such limit, "
                "or a shorter list"
            )

    def _run_documents(self, prompt: Prompt) -> DynamicCache:
        """Keys and values of everything before the query span, run from the first changed token on."""
        ids = prompt.ids[: prompt.query_start]
        cache, cached = self._cache, self._ids
        if cache is not None and ids == cached:
            return cache
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, cached, strict=False)))
        self._cache, self._ids, self._null = None, [], None  # an interrupted pass leaves nothing half done
        if cache is not None:
            crop(cache, common)
        cache = self._encoder.reader.prefill(torch.tensor([ids[common:]]), cache) if ids[common:] else cache
        assert cache is not None  # a prompt has at least one token before its query span
        self._cache, self._ids = cache, ids
        return cache


class ListTooLongError(ValueError):
    """The list and its query are longer than the model's context."""


def warn_of_truncation(passages: Sequence[Passage], truncated: Iterable[int]) -> None:
    """Say which documents are read only in part; they come back whole."""
    names = [f"{place} ({passages[place].id or passages[place].title or 'untitled'})" for place in sorted(truncated)]
    if names:
        warnings.warn(
            f"only the beginning of document {', '.join(names)} is read: longer than the model's context leaves room "
            "for; split it into smaller chunks to have all of it read",
            UserWarning,
            stacklevel=4,
        )


def _query_part(prompt: Prompt, cached: int) -> Rows:
    return Rows(prompt.ids[cached:], position=cached, read_from=prompt.query_start - cached)
