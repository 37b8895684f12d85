"""First-stage retrieval with BM25 (Robertson and Zaragoza 2009, through bm25s): candidate lists for data sets
without them, hard negatives, and the baseline of every comparison. Needs the extra `eval`.
"""

from collections.abc import Sequence

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.extras import require_extra


class BM25:
    """An index over texts, with Lucene's formula, k1 1.5 and b 0.75.

    Texts are tokenized by bm25s' defaults: runs of two or more word characters, lower-cased, without English stop
    words, not stemmed.

    >>> bm25 = BM25(["The ferry leaves at nine.", "Bread is baked at dawn."])
    >>> bm25.best("When does the ferry leave?", 1)
    [0]
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._bm25s = require_extra("bm25s", "eval")
        self._index = self._bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._size = len(texts)
        self._index.index(self._words(texts), show_progress=False)

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        words: list[list[str]] = self._bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
        return words

    def scores(self, query: str) -> list[float]:
        """The score of every text, in their order."""
        known = self._index.get_tokens_ids(self._words([query])[0])
        if not known:
            return [0.0] * self._size
        scores: list[float] = self._index.get_scores_from_ids(known).tolist()
        return scores

    def best(self, query: str, count: int) -> list[int]:
        """Indices of the best `count` texts, best first; equal scores keep the order of the texts."""
        scores = self.scores(query)
        return sorted(range(self._size), key=lambda index: -scores[index])[:count]


def keep_candidates(example: LabelledExample, candidates: int) -> LabelledExample:
    """The example with the documents that BM25 ranks best, best first; a shorter list stays as it is.

    Relevant documents that BM25 leaves out become `missed`: no reranker can bring them back.
    """
    if len(example.documents) <= candidates:
        return example
    kept = BM25([document.content for document in example.documents]).best(example.query, candidates)
    grades = example.judgements
    relevant = [rank for rank, index in enumerate(kept) if index in grades]
    return LabelledExample(
        query=example.query,
        documents=tuple(example.documents[index] for index in kept),
        relevant=tuple(relevant),
        grades=tuple(grades[kept[rank]] for rank in relevant),
        missed=example.missed + tuple(grade for index, grade in grades.items() if index not in kept),
        id=example.id,
        answer=example.answer,
        metadata=example.metadata,
    )
