"""First-stage retrieval with BM25 (Robertson and Zaragoza 2009, through bm25s): candidate lists for data sets
without them, hard negatives, and the baseline of every comparison. Needs the extra `eval`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.words import cut_words, plain_words
from qrhead_rag.extras import require_extra


class BM25:
    """An index over texts, with Lucene's formula, k1 1.5 and b 0.75.

    Words are by default those of bm25s: runs of two or more word characters, lower-cased, without English stop words,
    not stemmed. They are those of `cut_words` for queries, and for texts, that bm25s would not cut into their words: of
    scripts without spaces, and with vowel signs.

    >>> bm25 = BM25(["The ferry leaves at nine.", "Bread is baked at dawn."])
    >>> bm25.best("When does the ferry leave?", 1)
    [0]
    >>> BM25(["面包在黎明烤好。", "渡轮九点开。"]).best("渡轮什么时候开？", 1)
    [1]
    """

    def __init__(self, texts: Sequence[str]) -> None:
        require_extra("bm25s", "eval")
        self._texts = texts
        known = {word for text in texts for word in plain_words(text)}
        words = [word in known for text in texts for word in cut_words(text)]
        self._is_plain = 2 * sum(words) >= len(words)

    @cached_property
    def _plain(self) -> "_Index":
        return _Index(self._texts, plain_words)

    @cached_property
    def _any_script(self) -> "_Index":
        return _Index(self._texts, cut_words)

    def _index(self, query: str) -> "_Index":
        # texts in English with a name in Chinese keep their scores, for all queries but those with such words
        return self._plain if self._is_plain and plain_words(query) == cut_words(query) else self._any_script

    def matches(self, query: str) -> bool:
        """Whether any text has a word of the query; if none has, every score is 0."""
        return bool(self._index(query).known(query))

    def scores(self, query: str) -> list[float]:
        """The score of every text, in their order."""
        return self._index(query).scores(query)

    def best(self, query: str, count: int) -> list[int]:
        """Indices of the best `count` texts, best first; equal scores keep the order of the texts."""
        scores = self.scores(query)
        return sorted(range(len(scores)), key=lambda index: -scores[index])[:count]


class _Index:
    """An index over texts, cut into words by a function."""

    def __init__(self, texts: Sequence[str], cut: Callable[[str], list[str]]) -> None:
        self._bm25s = require_extra("bm25s", "eval")
        self._index = self._bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._cut = cut
        self._size = len(texts)
        words = self._words(texts)
        self._is_empty = not any(words)
        if not self._is_empty:  # bm25s cannot index nothing
            self._index.index(words, show_progress=False)

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text without English stop words."""
        words: list[list[str]] = self._bm25s.tokenize(
            [" ".join(self._cut(text)) for text in texts],
            lower=False,
            token_pattern=r"\S+",
            return_ids=False,
            show_progress=False,
        )
        return words

    def known(self, query: str) -> list[int]:
        """The query's words that stand in the texts, as bm25s numbers them."""
        if self._is_empty:
            return []
        known: list[int] = self._index.get_tokens_ids(self._words([query])[0])
        return known

    def scores(self, query: str) -> list[float]:
        """The score of every text, in their order."""
        known = self.known(query)
        if not known:
            return [0.0] * self._size
        scores: list[float] = self._index.get_scores_from_ids(known).tolist()
        return scores


def unmatched_warning(queries: Sequence[str], total: int) -> UserWarning:
    """What to say of the queries, among `total`, that `BM25.matches` no text of theirs."""
    return UserWarning(
        f"BM25 scores every document 0 for {len(queries)} of {total} queries (the first: {queries[0]!r:.80}), which "
        "share no word with the documents: these keep the order of the file or list"
    )


def keep_candidates(
    examples: Sequence[LabelledExample], candidates: int
) -> tuple[list[LabelledExample], UserWarning | None]:
    """The examples with the documents that BM25 ranks best, best first; shorter lists stay as they are.

    Relevant documents that BM25 leaves out become `missed`: no reranker can bring them back.

    Returns:
        The examples, and what to say of those queries that share no word with their documents.
    """
    kept: list[LabelledExample] = []
    unmatched: list[str] = []
    for example in examples:
        if len(example.documents) <= candidates:
            kept.append(example)
            continue
        bm25 = BM25([document.content for document in example.documents])
        if not bm25.matches(example.query):
            unmatched.append(example.query)
        kept.append(_cut(example, bm25.best(example.query, candidates)))
    return kept, unmatched_warning(unmatched, len(examples)) if unmatched else None


def _cut(example: LabelledExample, kept: Sequence[int]) -> LabelledExample:
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
