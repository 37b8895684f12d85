"""The turns of a conversation ranked for a question, from one list a conversation that grows with it.

Frameworks hand over the whole conversation at every turn, and one component may serve many. A conversation is therefore
recognised by its turns: under `late` and `independent` a new turn costs its own tokens and a query, under `listwise`
what follows the first changed token. A turn that is edited or forgotten leaves the list, with all that was read of it,
at the next ranking of a conversation of which at least half remains.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock
from weakref import WeakKeyDictionary

from qrhead_rag.byte_cache import ByteCache, content_key
from qrhead_rag.encoded import EncodedPassages
from qrhead_rag.encoder import EncodedList, ListTooLongError, warn_caller
from qrhead_rag.heads import Mode
from qrhead_rag.passage import as_passages
from qrhead_rag.ranking import Ranking
from qrhead_rag.retriever import QRRetriever
from qrhead_rag.scorer import ScorerOptions
from qrhead_rag.selection import rank_order

NEIGHBOUR_SHARE = 0.3
"""What a turn gets of the scores of the turns beside it, which often name what it calls "he" or "there". On 90
questions about two LoCoMo conversations the evidence was within 750 tokens for 74% instead of 68% (`late`)."""

_REMEMBERED = 1024  # rankings of one retriever


class HistoryScorerOptions(ScorerOptions):
    """Which QRRetriever ranks the turns of a conversation.

    The mode is `late` for every model, unless another is named: a conversation may be longer than the model's context,
    and of one that has grown by a turn only that turn is run.
    """

    mode: Mode | None = "late"


def rank_history(scorer: QRRetriever, query: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Indices of the texts of a conversation's turns, the most relevant to the query first.

    What was run of a conversation is kept for its next turn, within the `cache_bytes` of the scorer; one that is no
    longer asked makes room for newer ones. The latest rankings are remembered too, by a digest of their texts: an agent
    asks for its memory again at every step of a tool loop, each time with the same question and older turns.

    A question that the model's context has no room for is cut to its end, with a warning: a conversation must go on.
    """
    with _making:
        conversations = _of_scorer.get(scorer)
        if conversations is None:
            conversations = _of_scorer[scorer] = _Conversations(scorer)
    return conversations.rank(scorer, query, texts)


def with_neighbours(scores: Sequence[float]) -> list[float]:
    """Each turn's score with its share of the positive scores before and after it.

    >>> with_neighbours([0.0, 1.0, -1.0, 0.0])
    [0.3, 1.0, -0.7, 0.0]
    """
    around = [0.0, *(max(score, 0.0) for score in scores), 0.0]
    return [
        score + NEIGHBOUR_SHARE * (before + after)
        for score, before, after in zip(scores, around, around[2:], strict=False)
    ]


@dataclass(frozen=True)
class _Conversation:
    """The turns of one conversation when it was last asked, and what the mode keeps of them."""

    texts: frozenset[str]
    held: EncodedList

    @property
    def nbytes(self) -> int:
        """Bytes that the list holds."""
        return self.held.nbytes


class _Conversations:
    """What one retriever keeps of the conversations that it ranks. Only its lists hold texts and keys."""

    def __init__(self, scorer: QRRetriever) -> None:
        # With the retriever's own cache a passage would stay after it was forgotten, and be held twice until then.
        self._encoder = replace(scorer.encoder, options=scorer.options.model_copy(update={"cache_bytes": 0}))
        self._kept = ByteCache(scorer.options.cache_bytes)
        self._names = map(str, count())
        self._rankings: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def rank(self, scorer: QRRetriever, query: str, texts: Sequence[str]) -> tuple[int, ...]:
        key = content_key(query, *texts)
        with self._encoder.lock:
            ranking = self._rankings.pop(key, None)
            if ranking is None:
                ranking = _best_first(self._rank_by_end(scorer, query, texts))
            self._rankings[key] = ranking
            while len(self._rankings) > _REMEMBERED:
                self._rankings.popitem(last=False)
        return ranking

    def _rank_by_end(self, scorer: QRRetriever, query: str, texts: Sequence[str]) -> Ranking:
        asked = query.strip()
        while True:
            try:
                return self._rank(scorer, asked, texts)
            except ListTooLongError:
                if len(asked) < 2:
                    raise
            if asked == query.strip():
                warn_caller(
                    f"the question is {self._encoder.count_tokens(query)} tokens long, for which the context of the "
                    "model that ranks the turns has no room; they are ranked by its end"
                )
            asked = asked[len(asked) // 2 :].strip()

    def _rank(self, scorer: QRRetriever, query: str, texts: Sequence[str]) -> Ranking:
        passages, wanted = as_passages(texts), frozenset(texts)
        name = self._find(wanted) or next(self._names)
        known = self._kept.get(name)
        if self._encoder.mode == "listwise" and self._encoder.needs_windows(passages, query):
            self._kept.drop(name)
            return scorer.rank(query, passages)
        encoded = EncodedPassages(self._encoder, passages, query, held=known.held if known else None)
        ranking = encoded.rank(query)
        self._kept.put(name, _Conversation(wanted, encoded.held))
        return ranking

    def _find(self, texts: frozenset[str]) -> str | None:
        """Name of the conversation that these texts are of: at least half of its turns are among them."""
        shared = {name: (len(known.texts & texts), len(known.texts)) for name, known in self._kept}
        alike = {name: same for name, (same, turns) in shared.items() if 2 * same >= turns}
        return max(alike, key=alike.__getitem__, default=None)


def _best_first(ranked: Ranking) -> tuple[int, ...]:
    if ranked.windowed:  # scores of different windows do not compare
        return tuple(passage.index for passage in ranked)
    return tuple(rank_order(with_neighbours([passage.score for passage in sorted(ranked, key=lambda p: p.index)])))


_of_scorer: WeakKeyDictionary[QRRetriever, _Conversations] = WeakKeyDictionary()
_making = Lock()
