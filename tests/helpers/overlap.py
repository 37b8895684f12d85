"""A retriever that ranks by shared words, for tests of what is done with a ranking."""

from qrhead_rag import Passage, QRRetriever, RankedPassage, Ranking
from qrhead_rag.frameworks.conversation import _Conversations
from tests.helpers.tiny import tiny_model, tiny_tokenizer


class WordOverlap(QRRetriever):
    """Scores a text by the words it has in common with the query, and notes what it was asked."""

    asked: list[tuple[str, list[str]]]

    @classmethod
    def make(cls, monkeypatch) -> "WordOverlap":
        # A conversation's list is asked of itself, not of the retriever.
        monkeypatch.setattr(_Conversations, "_rank", lambda _, scorer, query, texts: scorer.rank(query, texts))
        found = cls(tiny_model(), tiny_tokenizer(), heads=[(1, 0)], mode="late")
        found.asked = []
        return found

    def rank(self, query, documents, **options):
        self.asked.append((query, list(documents)))
        wanted = set(query.lower().split())
        scores = [float(len(wanted & set(text.lower().split()))) for text in documents]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return Ranking(query, tuple(RankedPassage(p, scores[p], Passage(text=documents[p])) for p in order), self.mode)
