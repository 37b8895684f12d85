"""Passages encoded once, asked many times: one interface to the three modes and what they keep."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from qrhead_rag.core.passage import Document, Passage, as_passages, check_query
from qrhead_rag.core.pruning import Prune
from qrhead_rag.core.selection import Fallback, Order, Selection
from qrhead_rag.ranking.context import ListState, warn_of_truncation
from qrhead_rag.ranking.modes import new_list
from qrhead_rag.ranking.per_passage import Late
from qrhead_rag.ranking.result import Ranking, blank_lowest
from qrhead_rag.ranking.store import HasStore, ListStore, store_of
from qrhead_rag.ranking.tensor_file import read_encoded, write_encoded
from qrhead_rag.ranking.waiting import Answer, WaitingQueries


class EncodedPassages:
    """Passages with what the model keeps of them, safe to share between threads. `QRRetriever.encode` makes it.

    The texts are kept as they were given. `len`, iteration and `in` speak of the passages. Queries that several threads
    ask at once share passes.

    Raises:
        ListTooLongError: under `listwise`, the list is longer than the model's context.

    >>> from qrhead_rag import QRRetriever
    >>> retriever = QRRetriever(model, tokenizer, heads=[(1, 0), (2, 3)], mode="late")
    >>> encoded = retriever.encode(["The keeper counts the ships.", "Bread is baked at dawn."])
    >>> encoded.extend(["The lighthouse is tall."])  # what was there is not run again
    >>> len(encoded), len(encoded.score("Who counts the ships?"))
    (3, 3)
    """

    def __init__(self, store: ListStore, documents: Iterable[Document], state: ListState | None = None) -> None:
        self._store, self._context = store, store.context
        self._passages: list[Passage] = []
        self._waiting = WaitingQueries(store.context)
        self._list = new_list(store) if state is None else state
        passages = as_passages(documents)
        with self._context.lock:
            newly_cut = self._change(passages)
        warn_of_truncation(passages, newly_cut)

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[Passage]:
        return iter(list(self._passages))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are held for this list; under `independent` and `late` the cache has the same."""
        with self._context.lock:
            return self._list.nbytes

    @property
    def truncated(self) -> frozenset[int]:
        """Indices of the documents that are read only in part."""
        return self._list.truncated

    def encode(self, *, show_progress: bool = False) -> Self:
        """Run the documents now, so that the first query does not wait for them.

        Args:
            show_progress: show a progress bar, in tokens.
        """
        with self._context.lock:
            self._list.run(show_progress)
        return self

    def extend(self, documents: Iterable[Document]) -> None:
        """Add documents at the end; only what is new, or follows the first changed token, is run.

        Raises:
            ListTooLongError: the longer list does not fit the model's context; the list stays as it was.
        """
        added = as_passages(documents)
        with self._context.lock:
            passages = [*self._passages, *added]
            newly_cut = self._change(passages)
        warn_of_truncation(passages, newly_cut)

    def remove(self, document: int | str) -> Passage:
        """Take out the document at an index, or the one with an id, and give it back.

        Raises:
            IndexError: no such index.
            KeyError: no document, or more than one, with that id.
        """
        with self._context.lock:
            left = list(self._passages)
            removed = left.pop(self._index(document))
            newly_cut = self._change(left)
        warn_of_truncation(left, newly_cut)
        return removed

    def save(self, path: str | Path) -> None:
        """Write the list to one file (safetensors), texts included, to be asked elsewhere. Only under `late`.

        Metadata is written as JSON: what was a tuple is read as a list, a key that was a number as text.

        Raises:
            ValueError: the mode keeps too much for a file.
            TypeError: metadata of a passage that cannot be written as JSON.
        """
        state = _late_state(self._store, self._list)
        with self._context.lock:
            passages = self._passages  # before what is missing is run: other threads may then change the list
            document_of_piece, tensors = state.state()
            content = {"passages": [p.model_dump() for p in passages], "document_of_piece": document_of_piece}
            identity = self._context.file_identity()
        write_encoded(path, identity, content, tensors)

    @classmethod
    def load(cls, path: str | Path | Iterable[str | Path], retriever: HasStore) -> Self:
        """Read a list that `save` wrote, for a retriever of the same model, heads, mode and options.

        Args:
            path: a file; or several, or a folder of shards (`qrhead encode-dataset`), which become one list in the
                order of the files.
            retriever: what the list will be asked with.

        Raises:
            OSError: no such file, or it cannot be read.
            ValueError: damaged, or made with something else; the message names the file and both sides.
        """
        store = store_of(retriever)
        if not isinstance(path, str | Path):
            return cls._join(store, [cls.load(part, retriever) for part in path])
        if Path(path).is_dir():
            shards = sorted(Path(path).glob("part-*.safetensors"))
            if not shards:
                raise FileNotFoundError(f"{path} has no part-*.safetensors; expected a folder of encoded shards")
            return cls.load(shards, retriever)
        with store.context.lock:
            identity = store.context.file_identity()
        content, tensors = read_encoded(path, identity)
        try:
            loaded = cls(store, [Passage(**passage) for passage in content["passages"]])
            with store.context.lock:
                _late_state(store, loaded._list).restore(content["document_of_piece"], tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be used ({error}); encode again") from error
        return loaded

    @classmethod
    def _join(cls, store: ListStore, parts: Sequence[Self]) -> Self:
        """One list of several, in their order; what they have run is not run again."""
        whole = _late_state(store, new_list(store))
        for part in parts:
            whole.take_over(_late_state(store, part._list))
        return cls(store, [passage for part in parts for passage in part], whole)

    def score(self, query: str) -> list[float]:
        """s(d) of every document, in the order given. A blank one gets the lowest score of the list."""
        (reading,), passages, _ = self._ask([query])
        scores: list[float] = blank_lowest(reading.scores(len(passages))[0], passages).tolist()
        return scores

    def head_scores(self, query: str) -> Tensor:
        """s(d) of every document by each selected head alone. Shape: (heads, documents)"""
        (reading,), passages, _ = self._ask([query])
        return blank_lowest(reading.head_scores(len(passages)), passages)

    def rank(
        self,
        query: str,
        *,
        top_n: int | None = None,
        min_share: float | None = None,
        max_tokens: int | None = None,
        token_counter: Callable[[str], int] | None = None,
        order: Order = "rank",
        min_evidence: float | None = None,
        fallback: Fallback = "empty",
        prune: Prune | float | None = None,
    ) -> Ranking:
        """The documents ordered by score, cut to what is asked for, as `QRRetriever.rank` does."""
        return self.rank_queries(
            [query],
            top_n=top_n,
            min_share=min_share,
            max_tokens=max_tokens,
            token_counter=token_counter,
            order=order,
            min_evidence=min_evidence,
            fallback=fallback,
            prune=prune,
        )[0]

    def rank_queries(
        self,
        queries: Sequence[str],
        *,
        top_n: int | None = None,
        min_share: float | None = None,
        max_tokens: int | None = None,
        token_counter: Callable[[str], int] | None = None,
        order: Order = "rank",
        min_evidence: float | None = None,
        fallback: Fallback = "empty",
        prune: Prune | float | None = None,
    ) -> list[Ranking]:
        """A ranking for each query; the queries are packed into one pass."""
        if isinstance(queries, str):
            raise TypeError(f"queries is one string ({queries!r}); expected a list of them, or use rank()")
        selection = Selection(
            top_n=top_n,
            min_share=min_share,
            max_tokens=max_tokens,
            order=order,
            min_evidence=min_evidence,
            fallback=fallback,
        )
        prune, queries = Prune.of(prune), list(queries)
        readings, passages, truncated = self._ask(queries)
        counts = self._context.token_counts(passages, selection, token_counter)
        rankings = []
        for query, reading in zip(queries, readings, strict=True):
            scores, evidence = reading.scores(len(passages))
            ranking = Ranking.of(
                query,
                passages,
                scores,
                evidence,
                selection,
                counts,
                self._context.mode,
                truncated,
                list_evidence=reading.list_evidence(scores),
                prune=prune,
                count_tokens=token_counter or self._context.count_tokens,
            )
            rankings.append(ranking)
        return rankings

    def rank_many(self, queries: Sequence[str], **options: Any) -> list[Ranking]:
        """The former name of `rank_queries`."""
        warnings.warn("rank_many is now called rank_queries", DeprecationWarning, stacklevel=2)
        return self.rank_queries(queries, **options)

    def _ask(self, queries: Sequence[str]) -> Answer:
        """What each query finds in the list; queries of threads that wait for the lock meanwhile share its passes."""
        return self._waiting.ask([check_query(query) for query in queries], self._read)

    def _read(self, queries: Sequence[str]) -> Answer:
        passages, truncated = self._passages, self._list.truncated
        return Answer(self._list.ask(queries), passages, truncated)

    def _index(self, document: int | str) -> int:
        if isinstance(document, str):
            indices = [index for index, passage in enumerate(self._passages) if passage.id == document]
            if len(indices) != 1:
                raise KeyError(
                    f"{len(indices)} documents have the id {document!r}; expected one: remove it by its place"
                )
            return indices[0]
        if not -len(self) <= document < len(self):
            raise IndexError(f"no document {document} in a list of {len(self)}; expected one of its places or ids")
        return document

    def _change(self, passages: list[Passage]) -> list[int]:
        """Make this the list; gives the indices of documents that are cut and were not before. Holds the lock."""
        cut_before = {self._passages[index].content for index in self.truncated}
        self._list.set_passages(passages)
        self._passages = passages  # never changed in place, and with no call in between that could be interrupted
        return [index for index in self.truncated if passages[index].content not in cut_before]


def _late_state(store: ListStore, state: ListState) -> Late:
    if not isinstance(state, Late):
        raise ValueError(
            f"a list encoded under mode {store.context.mode!r} cannot be saved or loaded: that mode keeps too much "
            "for a file; expected 'late'"
        )
    return state
