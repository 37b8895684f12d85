"""A conversation cut to a token budget: which messages a model is shown, the recent ones and those that matter.

What is kept or left out is a turn: a user message with everything up to the next one, so that an answer never stands
without its question. A tool result that arrives after the user has spoken again joins the turns in between to one, so
that it never stands without its call. Tokens are counted of whole turns beside the system messages, as they would be
sent: a provider refuses to count anything else. The functions know nothing of any framework's messages, and change
nothing.

A turn over a cap is cut to the sentences that carry its evidence. Calls, ids and roles stay, and so do the user's last
words. Every message that is kept says why.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from qrhead_rag.core.pruning import ReadText
from qrhead_rag.frameworks.cutting import part_of, shorten_texts
from qrhead_rag.frameworks.history import TurnRanking

KEEP_LAST = 3
"""Messages kept ahead of all relevance: the question and the exchange before it, which says what "it" refers to."""

RankTurns: TypeAlias = Callable[[str, Sequence[str]], TurnRanking]
Kind: TypeAlias = Literal["fits", "system", "last turn", "recent", "relevant", "pair"]

_SENTENCES: dict[Kind, str] = {
    "fits": "everything fits",
    "system": "system message or summary, always kept",
    "last turn": "last turn, always kept",
    "recent": "recent",
    "relevant": "relevant",
    "pair": "result of a kept call",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What matters of one message when a conversation is trimmed.

    Attributes:
        text: what is scored; empty for a message of images alone.
        role: "system" is always kept, "user" starts a turn.
        calls: ids of the tool calls it makes.
        answers: ids of the tool calls it has results of.
        parts: its texts that may be cut, in their order; none where it stays as it is.

    >>> Message("look it up", role="user").calls
    ()
    """

    text: str
    role: Literal["system", "user", "other"] = "other"
    calls: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptMessage:
    """A message to show, and why.

    Attributes:
        index: in the conversation.
        kind: "last turn", "recent", "relevant" to the question, "pair" for the result of a call that is kept, "system"
            for system messages and summaries, or "fits" where nothing had to be left out.
        evidence: score of its turn, which compares within one ranking; None where nothing was ranked.
        parts: its texts after they were cut; None where it is whole.

    >>> KeptMessage(3, "relevant", 0.0312).reason
    'relevant, evidence 0.031'
    """

    index: int
    kind: Kind
    evidence: float | None = None
    parts: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def reason(self) -> str:
        """The same in a few words."""
        evidence = "" if self.evidence is None else f", evidence {self.evidence:.3f}"
        return _SENTENCES[self.kind] + evidence + ", cut" * (self.parts is not None)


@dataclass(frozen=True)
class TurnCap:
    """What a turn may cost, and how one is counted whose texts were cut.

    Attributes:
        max_tokens: what a turn may cost by itself.
        count_cut: as `count_tokens` of `choose_messages`, with the texts that messages of some indices have instead.
        count_alone: what a message costs with neither system messages nor schemas.
    """

    max_tokens: int
    count_cut: Callable[[Sequence[int], Mapping[int, Sequence[str]]], int]
    count_alone: Callable[[int], int]


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
    cap: TurnCap | None = None,
) -> list[KeptMessage]:
    """The messages to show, in their original order, each with its reason.

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
        rank_turns: (query, texts) to the texts ranked, with the evidence of their tokens if there is a cap. It is given
            the text of every turn before the last that could fit in `max_tokens`, so its input stays the same while the
            last turn grows; for a last turn over the cap its texts apart.
        start_on_user: leave out what stands before the first user message, unless it is all there is.
        cap: what a turn may cost by itself; None cuts nothing.
    """
    turns = split_turns(messages)
    if start_on_user and len(turns) > 1 and messages[turns[0][0]].role != "user":
        del turns[0]
    query = query if query and query.strip() else _last_question(messages)
    conversation = _Conversation(messages, turns, query, count_tokens, max_tokens, rank_turns, cap)
    chosen = conversation.choose(keep_last)
    for message in chosen:
        _logger.debug("message %d of %d is kept: %s", message.index, len(messages), message.reason)
    return chosen


def _last_question(messages: Sequence[Message]) -> str | None:
    return next((m.text for m in reversed(messages) if m.role == "user" and m.text.strip()), None)


class _Conversation:
    """A conversation while its messages are chosen.

    Attributes:
        cuts: the texts that messages of some indices have instead of their own.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        turns: Sequence[Sequence[int]],
        query: str | None,
        count_tokens: Callable[[Sequence[int]], int],
        max_tokens: int,
        rank_turns: RankTurns,
        cap: TurnCap | None,
    ) -> None:
        self._messages, self._turns, self._query = messages, turns, query
        self._count_tokens, self._max_tokens, self._rank_turns, self._cap = count_tokens, max_tokens, rank_turns, cap
        self._system = [index for index, message in enumerate(messages) if message.role == "system"]
        self._last_user = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
        self._limit = max_tokens  # of a turn, without what every request costs
        self._request = 0  # what every request costs, where there is a cap
        self._older: list[int] = []  # turns before the last that could fit
        self.cuts: dict[int, tuple[str, ...]] = {}

    def choose(self, keep_last: int) -> list[KeptMessage]:
        """The messages to show; see `choose_messages`."""
        last = len(self._turns) - 1
        everything: dict[int, Kind] = dict.fromkeys(range(last + 1), "fits")
        if last < (0 if self._cap else 1):
            return self._kept(everything)
        whole = self._count(everything)
        if self._cap:
            self._request = self._cost_of_request(self._cap)
            self._limit = max(1, min(self._cap.max_tokens, self._max_tokens - self._request))
        if whole <= self._max_tokens and (self._cap is None or whole - self._request <= self._limit):
            return self._kept(everything)
        least = self._count([last]) if last else whole
        if self._cap and least - self._request > self._limit:
            self._cut(last, least)
            least = self._count([last])
        left = self._max_tokens - least
        kinds: dict[int, Kind] = {last: "last turn"}
        if last and left > 0:
            alone = [self._count([turn]) for turn in range(last)]
            request = self._request if self._cap else (sum(alone) + least - whole) // last
            costs = [max(0, tokens - request) for tokens in alone]
            if self._cap:
                costs = [min(tokens, self._limit) for tokens in costs]
            self._older = [turn for turn in range(last) if costs[turn] <= self._max_tokens]
            if self._cap and sum(costs) <= left:
                kinds = dict.fromkeys(range(last, -1, -1), "fits")
            else:
                self._fill(kinds, costs, left, keep_last)
            self._cut_older(kinds, alone)
        while len(kinds) > 1 and self._count(kinds) > self._max_tokens:  # where turns cost more together than alone
            kinds.popitem()
        return self._kept(kinds)

    def _fill(self, kinds: dict[int, Kind], costs: Sequence[int], left: int, keep_last: int) -> None:
        """Keep turns before the last in what is left of the budget: recent ones, then relevant ones."""
        last = len(self._turns) - 1
        recent = len(self._turns[last])
        for turn in range(last - 1, -1, -1):
            if (self._query is not None and recent >= keep_last) or costs[turn] > left:
                break
            kinds[turn] = "recent"
            recent += len(self._turns[turn])
            left -= costs[turn]
        if self._query is not None and any(costs[turn] <= left for turn in self._older if turn not in kinds):
            for turn in (self._older[index] for index in self._ranking.order):
                if turn not in kinds and costs[turn] <= left:
                    kinds[turn] = "relevant"
                    left -= costs[turn]

    def _cut_older(self, kinds: dict[int, Kind], alone: Sequence[int]) -> None:
        """Cut the kept turns before the last that are over the cap; those that cannot be cut to it are left out."""
        for turn in [turn for turn in kinds if turn < len(alone)]:
            over = self._cap and alone[turn] - self._request > self._limit
            if over and not self._cut(turn, alone[turn]):
                del kinds[turn]

    def _with_system(self, turns: Iterable[int]) -> list[int]:
        return sorted([*self._system, *(index for turn in turns for index in self._turns[turn])])

    def _count(self, turns: Iterable[int], cuts: Mapping[int, Sequence[str]] | None = None) -> int:
        indices, cuts = self._with_system(turns), self.cuts if cuts is None else cuts
        of_these = {index: cuts[index] for index in indices if index in cuts}
        return self._cap.count_cut(indices, of_these) if self._cap and of_these else self._count_tokens(indices)

    def _cost_of_request(self, cap: TurnCap) -> int:
        """What system messages and schemas cost, by a message that may be sent with them and without."""
        if self._last_user < 0:
            return 0
        return self._count_tokens(sorted([*self._system, self._last_user])) - cap.count_alone(self._last_user)

    def _text(self, turn: int) -> str:
        return "\n".join(filter(None, (self._messages[index].text for index in self._turns[turn])))

    @cached_property
    def _ranking(self) -> TurnRanking:
        return self._rank_turns(self._query or "", [self._text(turn) for turn in self._older])

    def _cut(self, turn: int, tokens: int) -> bool:
        """Cut the texts of a turn that costs so many tokens; whether it is within the limit now."""
        parts = [
            (index, number)
            for index in self._turns[turn]
            for number, text in enumerate(self._messages[index].parts)
            if index != self._last_user and text.strip()
        ]

        def cuts_of(texts: Sequence[str]) -> dict[int, tuple[str, ...]]:
            new = dict(zip(parts, texts, strict=True))
            of_index = {
                index: tuple(new.get((index, number), text) for number, text in enumerate(self._messages[index].parts))
                for index, _ in parts
            }
            return {index: texts for index, texts in of_index.items() if texts != self._messages[index].parts}

        def count(texts: Sequence[str]) -> int:
            return self._count([turn], cuts_of(texts)) - self._request

        shorter = shorten_texts(self._read(turn, parts), self._limit, count, tokens - self._request)
        self.cuts |= cuts_of(shorter)
        return count(shorter) <= self._limit

    def _read(self, turn: int, parts: Sequence[tuple[int, int]]) -> list[ReadText]:
        """The parts of a turn with their evidence; that of the last turn is read apart, since the turn grows."""
        texts = [self._messages[index].parts[number] for index, number in parts]
        if self._query is None or not texts:
            return [ReadText(text, (), ()) for text in texts]
        if turn == len(self._turns) - 1:
            ranking = self._rank_turns(self._query, texts)
            return [ranking.read(number, text) for number, text in enumerate(texts)]
        whole = self._ranking.read(self._older.index(turn), self._text(turn))
        begins, begin = {}, 0
        for index in self._turns[turn]:
            begins[index] = begin
            begin += len(self._messages[index].text) + 1 if self._messages[index].text else 0
        read, reached = [], 0
        for (index, _), text in zip(parts, texts, strict=True):
            end = begins[index] + len(self._messages[index].text)
            start = whole.text.find(text, max(reached, begins[index]), end)
            reached = reached if start < 0 else start + len(text)
            read.append(ReadText(text, (), ()) if start < 0 else part_of(whole, start, text))
        return read

    def _kept(self, kinds: Mapping[int, Kind]) -> list[KeptMessage]:
        """The messages of the turns that are kept, with their reasons."""
        shown = [KeptMessage(index, "system") for index in self._system]
        for turn, kind in kinds.items():
            evidence = None
            if "_ranking" in vars(self) and turn in self._older and self._ranking.scores:
                evidence = self._ranking.scores[self._older.index(turn)]
            calls = {call for index in self._turns[turn] for call in self._messages[index].calls}
            for index in self._turns[turn]:
                is_pair = kind in ("recent", "relevant") and not calls.isdisjoint(self._messages[index].answers)
                shown.append(KeptMessage(index, "pair" if is_pair else kind, evidence, self.cuts.get(index)))
        return sorted(shown, key=lambda message: message.index)
