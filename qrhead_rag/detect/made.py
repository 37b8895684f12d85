"""Questions made from plain passages, so that heads can be found without labels.

A sentence is taken out of its passage and asks for the rest of it, among passages that BM25 finds near: the inverse
cloze task (Lee, Chang and Toutanova 2019, arXiv 1906.00300, section 4). Every passage loses its own sentence, the same
in each list, whether it is the right one or not. Otherwise the right passage would be the short one of its list, and
heads that smell length would win; and each passage has to be run once only.
"""

import random
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import NamedTuple

from qrhead_rag.core.passage import Document, Passage, as_passages
from qrhead_rag.core.sentences import leans_on_neighbour, sentence_spans
from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.words import cut_words

MAX_PASSAGES = 20_000
"""Passages of a larger corpus are drawn: BM25 over these takes seconds."""
MIN_QUESTIONS = 20
"""Fewer tell heads apart by chance alone."""
MIN_CANDIDATES = 8
"""Passages of the shortest list."""
_MIN_SENTENCES = 3  # of a passage: two are left
_QUESTION_WORDS = range(6, 61)
_NEAR_COPY = 0.6  # share of words in common
_SAID_IN = 2  # passages that may say a sentence


def make_examples(
    documents: Sequence[Document], count: int = 40, candidates: int = 20, seed: int = 0
) -> list[LabelledExample]:
    """Lists that ask with a sentence of a passage for the rest of it.

    The sentence stands by itself (it begins with no pronoun or connective), has 6 to 60 words, the rarest of its
    passage, and is said elsewhere once at most. Passages that share most words with the right one are no candidates.

    Args:
        documents: the corpus: chunks of some sentences each; equal ones count once.
        count: lists to make, at most.
        candidates: passages of a list, the right one included.
        seed: of draws and shuffles.

    Raises:
        ValueError: fewer than 20 lists (or `count`) can be made; the message has the numbers.
        TypeError: a document is of the wrong type.
        ImportError: the extra `eval` is not installed.

    >>> from qrhead_rag.datasets.encyclopedia import load_encyclopedia
    >>> passages = [document for example in load_encyclopedia()[:30] for document in example.documents]
    >>> example = make_examples(passages, count=20)[0]
    >>> len(example.documents), [example.query in document.text for document in example.documents].count(True)
    (20, 0)
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1 list to make")
    if candidates < MIN_CANDIDATES:
        raise ValueError(f"candidates={candidates}: expected at least {MIN_CANDIDATES} passages in a list")
    draw = random.Random(seed)
    corpus = _Corpus.of(documents, draw)
    examples: list[LabelledExample] = []
    order = list(range(len(corpus.passages)))
    draw.shuffle(order)
    for index in order:
        if len(examples) == count:
            break
        if (example := corpus.example(index, candidates, draw)) is not None:
            examples.append(example)
    if len(examples) < min(count, MIN_QUESTIONS):
        raise ValueError(
            f"{len(examples)} questions can be made from {len(corpus.passages)} different passages; expected at least "
            f"{min(count, MIN_QUESTIONS)}: give more passages of {_MIN_SENTENCES} sentences or more each, on like "
            "subjects, or find heads on labelled examples"
        )
    return examples


class _Sentence(NamedTuple):
    """A sentence of a passage.

    Attributes:
        start: its first character.
        end: behind its last one.
        text: without the space around it.
        can_ask: it stands by itself, with enough words.
        rarity: mean inverse document frequency of its words.
    """

    start: int
    end: int
    text: str
    can_ask: bool
    rarity: float


class _Corpus:
    """The different passages of a corpus, cut into sentences and words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._words = [cut_words(passage.text) for passage in passages]
        self._holders = Counter(word for words in self._words for word in set(words))  # passages that have a word
        self._bm25 = BM25([passage.text for passage in passages])
        self._sentences: dict[int, _Sentence | None] = {}

    @classmethod
    def of(cls, documents: Sequence[Document], draw: random.Random) -> "_Corpus":
        """The different passages that have text; a sample where there are too many."""
        readable = (
            passage.model_copy(update={"text": passage.text.encode("utf-8", "replace").decode()})  # lone surrogates
            for passage in as_passages(documents)
            if not passage.is_blank
        )
        different = list({" ".join(passage.text.split()): passage for passage in readable}.values())
        return cls(different if len(different) <= MAX_PASSAGES else draw.sample(different, MAX_PASSAGES))

    def example(self, index: int, candidates: int, draw: random.Random) -> LabelledExample | None:
        """A passage without its sentence among those that BM25 finds nearest to that; None where it cannot be asked."""
        question = self._sentence(index)
        if question is None or not question.can_ask:
            return None
        near = [other for other in self._bm25.best(question.text, 4 * candidates) if other != index]
        saying = {other for other in near if question.text in self.passages[other].text}
        if len(saying) >= _SAID_IN:
            return None
        listed = [index]
        for other in near:
            if len(listed) == candidates:
                break
            if other not in saying and self._sentence(other) is not None and not self._is_near_copy(index, other):
                listed.append(other)
        if len(listed) < MIN_CANDIDATES:
            return None
        draw.shuffle(listed)
        return LabelledExample(
            query=question.text,
            documents=tuple(self._without_its_sentence(number) for number in listed),
            relevant=(listed.index(index),),
            id=f"made-{index}",
        )

    def _sentence(self, index: int) -> _Sentence | None:
        """What a passage loses: its sentence of the rarest words, one that can ask where there is any."""
        if index not in self._sentences:
            text = self.passages[index].text
            spans = [(start, end) for start, end in sentence_spans(text) if text[start:end].strip()]
            sentences = [self._cut(text, *span) for span in spans]
            enough = len(sentences) >= _MIN_SENTENCES
            self._sentences[index] = max(sentences, key=lambda s: (s.can_ask, s.rarity)) if enough else None
        return self._sentences[index]

    def _cut(self, text: str, start: int, end: int) -> _Sentence:
        sentence = text[start:end].strip()
        words = cut_words(sentence)
        can_ask = (
            len(words) in _QUESTION_WORDS
            and len(set(words)) >= _QUESTION_WORDS.start
            and not leans_on_neighbour(sentence)
        )
        known = [log(len(self.passages) / self._holders[word]) for word in words if word in self._holders]
        return _Sentence(start, end, sentence, can_ask, sum(known) / (len(words) or 1))

    def _without_its_sentence(self, index: int) -> Passage:
        passage, sentence = self.passages[index], self._sentence(index)
        assert sentence is not None
        text = f"{passage.text[: sentence.start].rstrip()} {passage.text[sentence.end :].lstrip()}"
        return Passage(text=text.strip(), title=passage.title)

    def _is_near_copy(self, index: int, other: int) -> bool:
        first, second = set(self._words[index]), set(self._words[other])
        return len(first & second) > _NEAR_COPY * min(len(first), len(second))
