"""A conversation cut to a token budget: which messages a model is shown, the recent ones and those that matter.

What is kept or left out is a turn: a user message with everything up to the next one, so that an answer never stands
without its question. A tool result that arrives after the user has spoken again joins the turns in between to one, so
that it never stands without its call. Tokens are counted of whole turns beside the system messages, as they would be
sent: a provider refuses to count anything else. The functions know nothing of any framework's messages, and change
nothing.

Turns are ranked for a question from one list a conversation that grows with it. Frameworks hand over the whole
conversation at every turn, and one component may serve many. A conversation is therefore recognised by its turns:
under `late` and `independent` a new turn costs its own tokens and a query, under `listwise` what follows the first
changed token. A turn that is edited or forgotten leaves the list, with all that was read of it, at the next ranking of
a conversation of which at least half remains.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock
from typing import Literal, TypeAlias
from weakref import WeakKeyDictionary

from qrhead_rag.core.heads import Mode
from qrhead_rag.core.passage import as_passages
from qrhead_rag.core.selection import Selection, rank_order
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.ranking.cache import ByteCache, content_key
from qrhead_rag.ranking.context import ListState, ListTooLongError, warn_of_truncation
from qrhead_rag.ranking.modes import new_list
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.ranking.retriever import QRRetriever
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.warn import warn_caller

KEEP_LAST = 3
"""Messages kept ahead of all relevance: the question and the exchange before it, which says what "it" refers to."""

RankTurns: TypeAlias = Callable[[str, Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Message:
    """What matters of one message when a conversation is trimmed.

    Attributes:
        text: what is scored; empty for a message of images alone.
        role: "system" is always kept, "user" starts a turn.
        calls: ids of the tool calls it makes.
        answers: ids of the tool calls it has results of.

    >>> Message("look it up", role="user").calls
    ()
    """

    text: str
    role: Literal["system", "user", "other"] = "other"
    calls: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


def split_turns(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the messages of each turn, oldest first; system messages belong to no turn.

    >>> hello, reply = Message("hello", "user"), Message("good morning")
    >>> split_turns([hello, reply, hello, reply])
    [[0, 1], [2, 3]]
    >>> split_turns([Message("look", "user"), Message("", calls=("a",)), hello, Message("nothing", answers=("a",))])
    [[0, 1, 2, 3]]
    """
    turns: list[list[int]] = []
    turn_of_call: dict[str, int] = {}
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        last = len(turns) - 1
        first = min([turn_of_call.get(call, last) for call in message.answers], default=last)
        if first < last:
            turns[first:] = [[earlier for turn in turns[first:] for earlier in turn]]
            turn_of_call = {call: min(turn, first) for call, turn in turn_of_call.items()}
        turns[-1].append(index)
        turn_of_call |= dict.fromkeys(message.calls, len(turns) - 1)
    return turns


def choose_messages(
    messages: Sequence[Message],
    query: str | None,
    *,
    count_tokens: Callable[[Sequence[int]], int],
    max_tokens: int,
    keep_last: int,
    rank_turns: RankTurns,
    start_on_user: bool = False,
) -> list[int]:
    """Indices of the messages to show, in their original order.

    System messages and the last turn are always kept, also over the budget. Then come the turns that hold the last
    `keep_last` messages, newest first, up to the first that does not fit; then older turns by relevance, skipping what
    does not fit. Without any query the most recent turns are kept. Nothing is ranked where everything fits.

    Args:
        messages: the conversation, oldest first.
        query: what the turns are ranked by; None or blank stands for the last user message that has text.
        count_tokens: what the messages of these indices cost, sent together. It is asked for the whole, then for single
            turns and for the choice, each with the system messages, so that what every request costs counts once.
        max_tokens: what the messages may cost together.
        keep_last: how many messages count as recent.
        rank_turns: (query, texts) to indices of the texts, best first. It is given the text of every turn before the
            last that could fit in `max_tokens`, so its input stays the same while the last turn grows.
        start_on_user: leave out what stands before the first user message, unless it is all there is.
    """
    turns = split_turns(messages)
    if start_on_user and len(turns) > 1 and messages[turns[0][0]].role != "user":
        del turns[0]
    system = [index for index, message in enumerate(messages) if message.role == "system"]
    last = len(turns) - 1

    def with_system(chosen: Iterable[int]) -> list[int]:
        return sorted([*system, *(index for turn in chosen for index in turns[turn])])

    everything = with_system(range(len(turns)))
    if last < 1 or (whole := count_tokens(everything)) <= max_tokens:
        return everything
    least = count_tokens(with_system([last]))
    if (left := max_tokens - least) <= 0:
        return with_system([last])
    alone = [count_tokens(with_system([turn])) for turn in range(last)]
    counted_each_time = (sum(alone) + least - whole) // last
    costs = [max(0, tokens - counted_each_time) for tokens in alone]

    query = query if query and query.strip() else _last_question(messages)
    kept, recent = [last], len(turns[last])
    for turn in range(last - 1, -1, -1):
        if (query is not None and recent >= keep_last) or costs[turn] > left:
            break
        kept.append(turn)
        recent += len(turns[turn])
        left -= costs[turn]

    older = [turn for turn in range(last) if costs[turn] <= max_tokens]
    if query is not None and any(costs[turn] <= left for turn in older if turn not in kept):
        texts = ["\n".join(messages[index].text for index in turns[turn] if messages[index].text) for turn in older]
        for turn in (older[index] for index in rank_turns(query, texts)):
            if turn not in kept and costs[turn] <= left:
                kept.append(turn)
                left -= costs[turn]
    while len(kept) > 1 and count_tokens(with_system(kept)) > max_tokens:  # where turns cost more together than alone
        kept.pop()
    return with_system(kept)


def _last_question(messages: Sequence[Message]) -> str | None:
    return next((m.text for m in reversed(messages) if m.role == "user" and m.text.strip()), None)


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
        self._rankings: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def rank(self, scorer: QRRetriever, query: str, texts: Sequence[str]) -> tuple[int, ...]:
        key = content_key(query, *texts)
        with self._context.lock:
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


def _best_first(ranked: Ranking) -> tuple[int, ...]:
    if ranked.windowed:  # scores of different windows do not compare
        return tuple(passage.index for passage in ranked)
    return tuple(rank_order(with_neighbours([passage.score for passage in sorted(ranked, key=lambda p: p.index)])))


_of_scorer: WeakKeyDictionary[QRRetriever, _Conversations] = WeakKeyDictionary()
_making = Lock()
