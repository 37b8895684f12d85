"""The turns of a conversation ranked for a question, from one list that grows with it.

Frameworks hand over the whole conversation at every turn, and one component may serve many. A conversation is
therefore recognised by its turns: under `late` and `independent` a new turn costs its own tokens and a query, under
`listwise` what follows the first changed token. A turn that is edited or forgotten leaves the list, with all that was
read of it, at the next ranking of a conversation of which at least half remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from weakref import WeakKeyDictionary

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import Passage, as_passages
from qrhead_rag.core.pruning import ReadText
from qrhead_rag.core.reading import Evidence
from qrhead_rag.core.selection import Selection, rank_order
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.ranking.cache import ByteCache, content_key
from qrhead_rag.ranking.context import ListState, ListTooLongError, warn_of_truncation
from qrhead_rag.ranking.modes import new_list
from qrhead_rag.ranking.result import Ranking, read_text
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.warn import warn_caller

NEIGHBOUR_SHARE = 0.3
"""What a turn gets of the scores of the turns beside it, which often name what it calls "he" or "there". On 90
questions about two LoCoMo conversations the evidence was within 750 tokens for 74% instead of 68% (`late`)."""

_REMEMBERED_BYTES = 1 << 26  # of the latest rankings of one retriever


@dataclass(frozen=True)
class TurnRanking:
    """Texts ranked for a question.

    Attributes:
        order: indices of the texts, best first.
        scores: of each text, in the order that they came in; none where nothing was read.
        evidence: what the tokens of each text contributed; none where it was not asked for.

    >>> TurnRanking((1, 0)).read(0, "A ship.").contributions
    ()
    """

    order: tuple[int, ...]
    scores: tuple[float, ...] = ()
    evidence: tuple[Evidence | None, ...] = field(default=(), repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        tensors = [tensor for read in self.evidence if read for tensor in (read.contributions, read.offsets)]
        return 16 * len(self.order) + sum(tensor.nbytes for tensor in tensors) + 1

    def read(self, index: int, text: str) -> ReadText:
        """The text of this index with the evidence of its tokens, none where nothing was read."""
        return read_text(Passage(text=text), self.evidence[index] if self.evidence else None)


class HistoryScorerOptions(ScorerOptions):
    """Which QRRetriever ranks the turns of a conversation.

    The mode is `late` for every model, unless another is named: a conversation may be longer than the model's context,
    and of one that has grown by a turn only that turn is run.
    """

    mode: Mode | None = "late"


def rank_history(scorer: QRRetriever, query: str, texts: Sequence[str], evidence: bool = False) -> TurnRanking:
    """The texts of a conversation's turns, the most relevant to the query first.

    What was run of a conversation is kept for its next turn, within the `cache_bytes` of the scorer; one that is no
    longer asked makes room for newer ones. The latest rankings are remembered too, by a digest of their texts: an agent
    asks for its memory again at every step of a tool loop, each time with the same question and older turns.

    A question that the model's context has no room for is cut to its end, with a warning: a conversation must go on.

    Args:
        scorer: what ranks.
        query: the question.
        texts: of the turns.
        evidence: whether the ranking is to hold what each token contributed.
    """
    with _making:
        conversations = _of_scorer.get(scorer)
        if conversations is None:
            conversations = _of_scorer[scorer] = _Conversations(scorer)
    return conversations.rank(scorer, query, texts, evidence)


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
    state: ListState

    @property
    def nbytes(self) -> int:
        """Bytes that the list holds."""
        return self.state.nbytes


class _Conversations:
    """What one retriever keeps of the conversations that it ranks. Only its lists hold texts and keys."""

    def __init__(self, scorer: QRRetriever) -> None:
        # With the retriever's own cache a passage would stay after it was forgotten.
        self._store = replace(store_of(scorer), cache=ByteCache(0))
        self._context = self._store.context
        self._cache = ByteCache(scorer.options.cache_bytes)
        self._names = map(str, count())
        self._rankings = ByteCache(_REMEMBERED_BYTES)

    def rank(self, scorer: QRRetriever, query: str, texts: Sequence[str], evidence: bool) -> TurnRanking:
        key = content_key(query, *texts)
        with self._context.lock:
            ranking: TurnRanking | None = self._rankings.get(key)
            if ranking is None or (evidence and not ranking.evidence):
                ranking = _turn_ranking(self._rank_by_end(scorer, query, texts), evidence)
                self._rankings.put(key, ranking)
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
                    f"the question is {self._context.tokenizer.count(query)} tokens long, for which the context of the "
                    "model that ranks the turns has no room; they are ranked by its end"
                )
            asked = asked[len(asked) // 2 :].strip()

    def _rank(self, scorer: QRRetriever, query: str, texts: Sequence[str]) -> Ranking:
        passages, turns = as_passages(texts), frozenset(texts)
        name = self._find(turns) or next(self._names)
        known = self._cache.get(name)
        state: ListState = known.state if known else new_list(self._store)
        if state.needs_windows(passages, query):
            self._cache.drop(name)
            return scorer.rank(query, passages)
        state.set_passages(passages, query)
        truncated = state.truncated
        (reading,) = state.ask([query])  # meanwhile another thread may make the state that of its own turns
        self._cache.put(name, _Conversation(turns, state))
        warn_of_truncation(passages, truncated)
        mode = self._context.mode
        return Ranking.of(query, passages, *reading.scores(len(passages)), Selection(), None, mode, truncated)

    def _find(self, texts: frozenset[str]) -> str | None:
        """Name of the conversation that these texts are of: at least half of its turns are among them."""
        shared = {name: (len(known.texts & texts), len(known.texts)) for name, known in self._cache}
        alike = {name: same for name, (same, turns) in shared.items() if 2 * same >= turns}
        return max(alike, key=alike.__getitem__, default=None)


def _turn_ranking(ranked: Ranking, evidence: bool) -> TurnRanking:
    scores = tuple(passage.score for passage in sorted(ranked, key=lambda passage: passage.index))
    if ranked.windowed:  # scores of different windows do not compare
        order = tuple(passage.index for passage in ranked)
    else:
        order = tuple(rank_order(with_neighbours(scores)))
    return TurnRanking(order, scores, ranked.token_evidence if evidence else ())


_of_scorer: WeakKeyDictionary[QRRetriever, _Conversations] = WeakKeyDictionary()
_making = Lock()
