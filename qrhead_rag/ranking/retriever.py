"""QRRetriever: a language model's own attention as a reranker (Zhang et al., EMNLP 2025, arXiv 2506.09944)."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qrhead_rag.core.heads import (
    EMBEDDED_MODEL,
    HeadChoice,
    HeadSet,
    Mode,
    ModelShape,
    Readout,
    check_mode,
    is_shipped_for,
)
from qrhead_rag.core.passage import Document, Passage, as_passages, check_query
from qrhead_rag.core.pruning import Prune
from qrhead_rag.core.reading import Reading
from qrhead_rag.core.selection import Fallback, Order, Selection
from qrhead_rag.models.loading import LoadedModel, load_model, share_model
from qrhead_rag.ranking.by_name import check_loadable, loading_options
from qrhead_rag.ranking.cache import ByteCache
from qrhead_rag.ranking.context import ListContext, warn_of_truncation
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.ingestion import encode_to_store
from qrhead_rag.ranking.modes import known_list, read_list
from qrhead_rag.ranking.options import Layout, ListOptions
from qrhead_rag.ranking.passage_store import PassageStore, StoreChoice
from qrhead_rag.ranking.progress import progress_bar
from qrhead_rag.ranking.result import Ranking, blank_lowest
from qrhead_rag.ranking.store import ListStore, Opening
from qrhead_rag.ranking.stored import StoredPassages
from qrhead_rag.ranking.windows import rank_in_windows


class QRRetriever:
    """Ranks passages by the attention that selected heads of a decoder pay them when it reads the query.

    Args:
        model: a transformers decoder in memory; it is left exactly as found. `from_pretrained` loads one by name.
        tokenizer: its tokenizer.
        heads: None (the recommended set of this model, or its default for the mode that is named; a model without one
            finds its heads at first use, which takes minutes, once), "shipped" (refuses such a model), the name of a
            shipped set, "all", a path to a .json file, a HeadSet, or a list of (layer, head) pairs.
        mode: "listwise" (the paper: all documents in one prompt), "independent" (each encoded alone, the query attends
            to all) or "late" (the query's heads meet each document's stored keys). None is the mode in which the heads
            were found to rank best: that of the chosen set; for pairs and "all", that of the model's recommended set.
        model_name: name of the model where it knows none, or another, of itself.
        store: where mode "late" keeps encoded passages, so that every process reads them and runs none twice: a file,
            True for one in the user's cache folder, or a byte store; see `PassageStore`.
        options: layout, instruction, context_length, window, stride, prefill_tokens, piece_tokens, batch_tokens,
            cache_bytes, key_dtype and readout; see `ListOptions`.

    Raises:
        TypeError: model or tokenizer is of the wrong kind.
        ValueError: an unknown mode or option, heads of another model, or a model that cannot be read.

    >>> retriever = QRRetriever(model, tokenizer, heads=[(1, 0), (2, 3)], mode="late")
    >>> documents = ["The keeper counts the ships.", "Bread is baked at dawn.", "The lighthouse is tall."]
    >>> ranking = retriever.rank("Who counts the ships?", documents, top_n=2)
    >>> len(ranking), ranking.mode
    (2, 'late')
    >>> ranking[0].score >= ranking[1].score
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        heads: HeadChoice = None,
        mode: Mode | None = None,
        model_name: str | None = None,
        store: StoreChoice | None = None,
        **options: Any,
    ) -> None:
        reading = ListOptions(**options)
        name = model_name or getattr(model, "name_or_path", None) or type(model).__name__
        load = partial(share_model, model, tokenizer, mode=check_mode(mode), name=model_name)
        self._set_up(_load_with_heads(load, heads, name, None, mode, reading), mode, reading, store)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        heads: HeadChoice = None,
        mode: Mode | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        store: StoreChoice | None = None,
        **options: Any,
    ) -> Self:
        """Load a model, cut to the layers that its heads need, without output matrix.

        Args:
            model: hub id or local folder; None is the embedded SmolLM2-135M-Instruct, which needs no network.
            heads: see the class.
            mode: see the class.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes an accelerator where there is one.
            dtype: None is float32 on CPU, the checkpoint's own elsewhere.
            device_map: as in transformers, "auto" for one; instead of `device`.
            revision: branch, tag or commit on the hub.
            gguf_file: name of a GGUF file inside the folder or hub repository.
            trust_remote_code: whether code that comes with the model may run.
            store: see the class.
            options: those of the class; any other goes to transformers' `from_pretrained` (attn_implementation,
                quantization_config, token …).

        Raises:
            OSError: no such model, or the embedded one is not installed; the message says what to do.
            ValueError: as in the class, or a checkpoint that lacks weights.
        """
        reading = ListOptions(**{key: options.pop(key) for key in ListOptions.model_fields if key in options})
        load = partial(
            load_model,
            model,
            mode=check_mode(mode),
            device=device,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            **options,
        )
        loaded = _load_with_heads(load, heads, str(model or EMBEDDED_MODEL), revision, mode, reading)
        retriever = cls.__new__(cls)
        retriever._set_up(loaded, mode, reading, store)
        return retriever

    def _set_up(self, loaded: LoadedModel, mode: Mode | None, options: ListOptions, store: StoreChoice | None) -> None:
        self._loaded = loaded
        self._context = context = ListContext.of_model(loaded, mode or loaded.heads.mode, options)
        stored = None if store is None else StoredPassages.of_context(context, loaded.model, PassageStore(store))
        self._store = ListStore(context, ByteCache(options.cache_bytes), Opening(context), stored)

    def with_readout(self, readout: Readout) -> Self:
        """The same heads with another readout; passages that the mode encodes alone are encoded once for both."""
        options = self.options.model_copy(update={"readout": readout})
        context = replace(self._context, readout=readout, options=options)
        cache = ByteCache(options.cache_bytes) if self.mode == "listwise" else self._store.cache
        retriever = type(self).__new__(type(self))
        retriever._loaded, retriever._context = self._loaded, context
        retriever._store = replace(self._store, context=context, cache=cache)
        return retriever

    @property
    def store(self) -> PassageStore | None:
        """Where encoded passages are kept for every process; None where they are not."""
        return None if self._store.stored is None else self._store.stored.passage_store

    @property
    def options(self) -> ListOptions:
        """How lists are read."""
        return self._context.options

    @property
    def heads(self) -> HeadSet:
        """The heads that are read."""
        return self._loaded.heads

    @property
    def mode(self) -> Mode:
        """How the documents are run through the model."""
        return self._context.mode

    @property
    def readout(self) -> Readout:
        """How the attention becomes scores."""
        return self._context.readout

    @property
    def layout(self) -> Layout:
        """How the list is laid into the prompt."""
        return self._context.options.layout

    @property
    def instruction(self) -> str:
        """The late instruction that the prompt puts before the query."""
        return self._context.template.instruction

    @property
    def context_length(self) -> int | None:
        """Tokens that a prompt may have; None where the model's configuration names no limit."""
        return self._context.context_length

    @property
    def model(self) -> PreTrainedModel:
        """The model in memory, perhaps cut to its first layers."""
        return self._loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._loaded.tokenizer

    @property
    def model_name(self) -> str:
        """Hub id or folder of the model."""
        return self._loaded.name

    @property
    def shape(self) -> ModelShape:
        """Layers and heads of the whole model, also when fewer are in memory."""
        return self._loaded.shape

    def loading_options(self) -> dict[str, Any]:
        """Options with which `from_pretrained` loads an equal retriever; `model` is "in-memory:…" where it cannot."""
        return loading_options(self._loaded, self.mode, self.options, self.store)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: it is loaded again, and what it has read is not kept.

        Raises:
            ValueError: the model lives in memory only.
        """
        options = self.loading_options()
        check_loadable(options["model"], self, "save it (save_pretrained) and load it from there (from_pretrained)")
        return partial(type(self).from_pretrained, **options), ()

    def __copy__(self) -> Self:
        """Itself, as `__deepcopy__`: it never changes, and its model is shared."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        settings = f"heads={self.heads.name!r}, mode={self.mode!r}, readout={self.readout!r}"
        return f"QRRetriever({self.model_name!r}, {settings})"

    def score(self, query: str, documents: Iterable[Document]) -> list[float]:
        """Scores in the order given; a blank document gets the lowest of the list. They compare within this list only.

        Raises:
            TypeError, ValueError: a blank query or a document of the wrong type.
            ListTooLongError: list and query are longer than the model's context; `rank` reads such a list in windows.
        """
        query, passages = check_query(query), as_passages(documents)
        scores: list[float] = blank_lowest(self._read(query, passages).scores(len(passages))[0], passages).tolist()
        return scores

    def head_scores(self, query: str, documents: Iterable[Document]) -> Tensor:
        """Scores by each selected head alone, calibrated and masked per head, as detection needs them.

        Returns:
            Rows in the order of `heads.heads`. Shape: (heads, documents)
        """
        query, passages = check_query(query), as_passages(documents)
        return blank_lowest(self._read(query, passages).head_scores(len(passages)), passages)

    def _read(self, query: str, passages: list[Passage]) -> Reading:
        with self._context.lock:
            reading, truncated = read_list(*known_list(self._store, passages), query, passages)
        warn_of_truncation(passages, truncated)
        return reading

    def rank(
        self,
        query: str,
        documents: Iterable[Document],
        *,
        top_n: int | None = None,
        min_share: float | None = None,
        max_tokens: int | None = None,
        token_counter: Callable[[str], int] | None = None,
        order: Order = "rank",
        fuse_retrieval: float | None = None,
        retrieval_scores: Sequence[float] | None = None,
        min_evidence: float | None = None,
        fallback: Fallback = "empty",
        prune: Prune | float | None = None,
    ) -> Ranking:
        """The documents ordered by score, cut to what is asked for. The best one is always kept.

        Args:
            query: the question.
            documents: str, Passage or mapping (text, title, id, metadata); they are not changed.
            top_n: keep at most this many.
            min_share: keep what has at least this share of the list's positive score mass.
            max_tokens: keep whole documents, best first, within a budget of tokens.
            token_counter: counts the tokens of a text for `max_tokens` and `prune`; by default the model's tokenizer.
            order: "rank" or "original".
            fuse_retrieval: weight of the first stage's order beside the heads': 1 counts both alike, None ranks by the
                heads alone. `score` stays that of the heads; `fused_score` orders.
            retrieval_scores: of each document by the first stage, for `fuse_retrieval`; None where the documents stand
                in its order.
            min_evidence: a list of less evidence than this (0 to 1) is refused: `ranking.abstained`. `ranking.evidence`
                says what a list has; `qrhead calibrate` recommends a floor for a corpus.
            fallback: what a refused list gives: "empty" no document, "first_stage" the first ones in the first stage's
                order.
            prune: which sentences to keep of the kept passages: those whose evidence per token reaches this share of
                the list's mean (0.5), the best within so many tokens (200), or a `Prune`. `ranked.pruned` is the text
                cut to them, `ranked.kept` their characters; the passages stay whole. None keeps all.

        A list longer than the model's context is ranked in sliding windows, with a warning and `ranking.windowed`.

        Raises:
            TypeError, ValueError: a blank query, a document of the wrong type, an option out of range, or a floor of
                evidence under the readout `published`.
            FloatingPointError: the model gave attention that is not finite.
        """
        query, passages = check_query(query), as_passages(documents)
        selection = Selection(
            top_n=top_n,
            min_share=min_share,
            max_tokens=max_tokens,
            order=order,
            fuse_retrieval=fuse_retrieval,
            min_evidence=min_evidence,
            fallback=fallback,
        )
        selection.check_retrieval(retrieval_scores, len(passages))
        prune = Prune.of(prune)
        with self._context.lock:
            key, state = known_list(self._store, passages)
            windows = state.needs_windows(passages, query)
            read = None if windows else read_list(key, state, query, passages)
        if read is None:
            return rank_in_windows(self._store, query, passages, selection, token_counter, retrieval_scores, prune)
        reading, truncated = read
        warn_of_truncation(passages, truncated)
        counts = self._context.token_counts(passages, selection, token_counter)
        scores, evidence = reading.scores(len(passages))
        return Ranking.of(
            query,
            passages,
            scores,
            evidence,
            selection,
            counts,
            self.mode,
            truncated,
            retrieval_scores=retrieval_scores,
            list_evidence=reading.list_evidence(scores),
            prune=prune,
            count_tokens=token_counter or self._context.count_tokens,
        )

    def rank_lists(
        self,
        queries: Sequence[str],
        lists: Sequence[Iterable[Document]],
        *,
        show_progress: bool = False,
        **options: Any,
    ) -> list[Ranking]:
        """Rank many lists, each by its query.

        Args:
            queries: one a list.
            lists: the documents of each query.
            show_progress: show a progress bar.
            options: as in `rank`.

        Raises:
            ValueError: another number of queries than of lists.
        """
        if isinstance(queries, str) or len(queries) != len(lists):
            count = "one string" if isinstance(queries, str) else f"{len(queries)} queries"
            raise ValueError(f"found {count} and {len(lists)} lists; expected as many queries as lists")
        rankings: list[Ranking] = []
        with progress_bar(len(queries), "ranking", "list", show_progress) as advance:
            for query, documents in zip(queries, lists, strict=True):
                rankings.append(self.rank(query, documents, **options))
                advance(1)
        return rankings

    def rank_batch(self, queries: Sequence[str], lists: Sequence[Iterable[Document]], **options: Any) -> list[Ranking]:
        """The former name of `rank_lists`."""
        warnings.warn("rank_batch is now called rank_lists", DeprecationWarning, stacklevel=2)
        return self.rank_lists(queries, lists, **options)

    def needs_windows(self, query: str, documents: Iterable[Document]) -> bool:
        """Whether `rank` reads this list in sliding windows, and `score` refuses it: it is longer than the context.

        Raises:
            ListTooLongError: the query leaves no room for any document.
        """
        query, passages = check_query(query), as_passages(documents)
        with self._context.lock:
            return known_list(self._store, passages)[1].needs_windows(passages, query)

    def encode(self, documents: Iterable[Document], *, show_progress: bool = False) -> EncodedPassages:
        """Run the documents once, to ask them many queries.

        Under `independent` and `late` the retriever's cache holds the passages too, for other lists (`cache_bytes`).

        Args:
            documents: as in `rank`.
            show_progress: show a progress bar, in tokens.

        Raises:
            ListTooLongError: under `listwise`, the list is longer than the model's context.
        """
        return EncodedPassages(self._store, documents).encode(show_progress=show_progress)

    def encode_to_store(self, documents: Iterable[Document], *, show_progress: bool = False) -> int:
        """Encode documents into the store, for every retriever of the same model, heads and options that has it.

        Args:
            documents: as in `rank`, of any number: a part at a time is in memory.
            show_progress: show a progress bar, in passages.

        Returns:
            How many were not stored before.

        Raises:
            ValueError: this retriever has no store.
            OSError: the store cannot be written.
        """
        return encode_to_store(self._store, documents, show_progress)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, read as plain text by the model's tokenizer."""
        return self._context.count_tokens(text)


def _load_with_heads(
    load: Callable[..., LoadedModel],
    heads: HeadChoice,
    name: str,
    revision: str | None,
    mode: Mode | None,
    options: ListOptions,
) -> LoadedModel:
    """The model, loaded for its heads; a model without shipped heads finds them."""
    if heads is not None or is_shipped_for(name):
        return load(heads=heads)
    from qrhead_rag.detect.first_use import heads_at_first_use

    return heads_at_first_use(lambda choice: load(heads=choice), name, revision, mode, options.readout)
