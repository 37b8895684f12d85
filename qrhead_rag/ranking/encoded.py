"""Passages encoded once, asked many times: one interface to the three modes and what they keep."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from qrhead_rag.core.passage import Document, Passage, as_passages, check_query
from qrhead_rag.core.scoring import Evidence, Reading
from qrhead_rag.core.selection import Order, Selection, rank_order, select
from qrhead_rag.ranking.context import ListContext, ListState, warn_of_truncation
from qrhead_rag.ranking.listwise import ListwiseList
from qrhead_rag.ranking.per_passage import SeparateList
from qrhead_rag.ranking.result import RankedPassage, Ranking
from qrhead_rag.ranking.tensor_file import read_encoded, write_encoded


class EncodedPassages:
    """Passages with what the model keeps of them, safe to share between threads. `QRRetriever.encode` makes it.

    The texts are kept as they were given. `len`, iteration and `in` speak of the passages.

    Raises:
        ListTooLongError: under `listwise`, the list is longer than the model's context.
    """

    def __init__(
        self,
        encoder: ListContext,
        documents: Iterable[Document],
        query: str | None = None,
        held: ListState | None = None,
    ) -> None:
        self._encoder = encoder
        self._passages: list[Passage] = []
        self._list = held or (ListwiseList(encoder) if encoder.mode == "listwise" else SeparateList(encoder))
        self._change(as_passages(documents), query)

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[Passage]:
        return iter(list(self._passages))

    @property
    def held(self) -> ListState:
        """What the mode keeps of the list, to be used again for a list of the same texts."""
        return self._list

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are held for this list."""
        with self._encoder.lock:
            return self._list.nbytes

    @property
    def truncated(self) -> frozenset[int]:
        """Places of the documents that are read only in part."""
        return self._list.truncated

    def encode(self, *, show_progress: bool = False) -> Self:
        """Run the documents now, so that the first query does not wait for them.

        Args:
            show_progress: show a progress bar, in tokens.
        """
        with self._encoder.lock:
            if self._has_text():
                self._list.run(show_progress)
        return self

    def extend(self, documents: Iterable[Document]) -> None:
        """Add documents at the end; only what is new, or follows the first changed token, is run.

        Raises:
            ListTooLongError: the longer list does not fit the model's context; the list stays as it was.
        """
        added = as_passages(documents)
        with self._encoder.lock:
            self._change([*self._passages, *added])

    def remove(self, document: int | str) -> Passage:
        """Take out the document at a place, or the one with an id, and give it back.

        Raises:
            IndexError: no such place.
            KeyError: no document, or more than one, with that id.
        """
        with self._encoder.lock:
            left = list(self._passages)
            removed = left.pop(self._place(document))
            self._change(left)
        return removed

    def save(self, path: str | Path) -> None:
        """Write the list to one file (safetensors), texts included, to be asked elsewhere. Only under `late`.

        Metadata is written as JSON: what was a tuple is read as a list, a key that was a number as text.

        Raises:
            ValueError: the mode keeps too much for a file.
            TypeError: metadata of a passage that cannot be written as JSON.
        """
        held = _late_list(self._encoder, self._list)
        with self._encoder.lock:
            document_of_piece, tensors = held.state() if self._has_text() else ([], {})
            content = {"passages": [p.model_dump() for p in self._passages], "document_of_piece": document_of_piece}
            identity = self._encoder.file_identity()
        write_encoded(path, identity, content, tensors)

    @classmethod
    def load(cls, path: str | Path | Iterable[str | Path], retriever: "HasEncoder") -> Self:
        """Read a list that `save` wrote, for a retriever of the same model, heads, mode and options.

        Args:
            path: a file; or several, or a folder of shards (`qrhead encode-dataset`), which become one list in the
                order of the files.
            retriever: what the list will be asked with.

        Raises:
            OSError: no such file, or it cannot be read.
            ValueError: damaged, or made with something else; the message names the file and both sides.
        """
        if not isinstance(path, str | Path):
            return cls._join(retriever.encoder, [cls.load(one, retriever) for one in path])
        if Path(path).is_dir():
            shards = sorted(Path(path).glob("part-*.safetensors"))
            if not shards:
                raise FileNotFoundError(f"{path} has no part-*.safetensors; expected a folder of encoded shards")
            return cls.load(shards, retriever)
        encoder = retriever.encoder
        with encoder.lock:
            identity = encoder.file_identity()
        content, tensors = read_encoded(path, identity)
        try:
            loaded = cls(encoder, [Passage(**passage) for passage in content["passages"]])
            if loaded._has_text():
                with encoder.lock:
                    _late_list(encoder, loaded._list).restore(content["document_of_piece"], tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be used ({error}); encode again") from error
        return loaded

    @classmethod
    def _join(cls, encoder: ListContext, parts: Sequence[Self]) -> Self:
        """One list of several, in their order; what they have run is not run again."""
        whole = _late_list(encoder, SeparateList(encoder))
        for part in parts:
            whole.take_over(_late_list(encoder, part._list))
        return cls(encoder, [passage for part in parts for passage in part], held=whole)

    def score(self, query: str) -> list[float]:
        """s(d) of every document, in the order given. A blank one gets the lowest score of the list."""
        return self.scored([check_query(query)])[0][0]

    def head_scores(self, query: str) -> Tensor:
        """s(d) of every document by each selected head alone. # (heads, documents)"""
        with self._encoder.lock:
            if not self._has_text():
                return torch.zeros(len(self._encoder.heads), len(self))
            scores = self._list.read([check_query(query)])[0].head_scores(len(self))
            blank = self._blank()
        scores[:, blank] = torch.inf
        lowest = scores.amin(dim=1, keepdim=True)  # (heads, 1)
        return scores.where(~blank, lowest)

    def rank(
        self,
        query: str,
        *,
        top_n: int | None = None,
        min_share: float | None = None,
        max_tokens: int | None = None,
        token_counter: Callable[[str], int] | None = None,
        order: Order = "rank",
    ) -> Ranking:
        """The documents ordered by score, cut to what is asked for, as `QRRetriever.rank` does."""
        selection = Selection(top_n=top_n, min_share=min_share, max_tokens=max_tokens, order=order)
        return self.rank_selected([query], selection, token_counter)[0]

    def rank_many(
        self,
        queries: Sequence[str],
        *,
        top_n: int | None = None,
        min_share: float | None = None,
        max_tokens: int | None = None,
        token_counter: Callable[[str], int] | None = None,
        order: Order = "rank",
    ) -> list[Ranking]:
        """A ranking for each query; the queries are packed into one pass."""
        if isinstance(queries, str):
            raise TypeError(f"queries is one string ({queries!r}); expected a list of them, or use rank()")
        selection = Selection(top_n=top_n, min_share=min_share, max_tokens=max_tokens, order=order)
        return self.rank_selected(list(queries), selection, token_counter)

    def rank_selected(
        self, queries: Sequence[str], selection: Selection, token_counter: Callable[[str], int] | None = None
    ) -> list[Ranking]:
        """`rank_many` with its options already validated."""
        with self._encoder.lock:
            found = self.scored([check_query(query) for query in queries])
            passages, blank, truncated = list(self._passages), self._blank().tolist(), self.truncated
        counts = None
        if selection.max_tokens is not None:  # without the lock, which a caller's counter may wait for elsewhere
            count = token_counter or self._encoder.count_tokens
            counts = [count(passage.content) for passage in passages]
        rankings = []
        for query, (scores, evidence) in zip(queries, found, strict=True):
            ranking = sorted(rank_order(scores), key=lambda place: blank[place])
            kept = select(scores, selection, counts, ranking) if scores else []
            ranked = (RankedPassage(place, scores[place], passages[place], place in truncated) for place in kept)
            rankings.append(Ranking(query, tuple(ranked), self._encoder.mode, _evidence=tuple(evidence)))
        return rankings

    def scored(self, queries: Sequence[str]) -> list[tuple[list[float], list[Evidence | None]]]:
        """Per query the scores, and what each document's tokens contributed; None for one that was not read."""
        with self._encoder.lock:
            if not self._has_text():
                return [([0.0] * len(self), [None] * len(self)) for _ in queries]
            readings = self._list.read(queries) if queries else []
            return [self._score(reading) for reading in readings]

    def _score(self, reading: Reading) -> tuple[list[float], list[Evidence | None]]:
        scores, evidence = reading.scores(len(self))
        blank = self._blank()
        return scores.where(~blank, scores[~blank].min()).tolist(), evidence

    def _blank(self) -> Tensor:
        return torch.tensor([passage.is_blank for passage in self._passages], dtype=torch.bool)

    def _has_text(self) -> bool:
        return not all(passage.is_blank for passage in self._passages)

    def _place(self, document: int | str) -> int:
        if isinstance(document, str):
            places = [place for place, passage in enumerate(self._passages) if passage.id == document]
            if len(places) != 1:
                raise KeyError(
                    f"{len(places)} documents have the id {document!r}; expected one: remove it by its place"
                )
            return places[0]
        if not -len(self) <= document < len(self):
            raise IndexError(f"no document {document} in a list of {len(self)}; expected one of its places or ids")
        return document

    def _change(self, passages: list[Passage], query: str | None = None) -> None:
        with self._encoder.lock:
            known = {passage.content for place, passage in enumerate(self._passages) if place in self.truncated}
            self._list.set_passages(passages, query)
            self._passages = passages  # with no call in between that could be interrupted
            truncated = self.truncated
        warn_of_truncation(passages, [place for place in truncated if passages[place].content not in known])


class HasEncoder(Protocol):
    """A QRRetriever, as far as lists are concerned."""

    @property
    def encoder(self) -> ListContext:
        """What its lists are encoded with."""
        ...


def _late_list(encoder: ListContext, held: ListState) -> SeparateList:
    if encoder.mode != "late" or not isinstance(held, SeparateList):
        raise ValueError(f"mode {encoder.mode!r} keeps every layer's keys and values; expected 'late' to save or load")
    return held
