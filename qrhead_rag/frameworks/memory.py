"""Which messages of a conversation a model is shown, in a token budget: the recent ones and those that matter.

What is kept or left out is a turn: a user message with everything up to the next one, so that an answer never stands
without its question. A tool result that arrives after the user has spoken again joins the turns in between to one, so
that it never stands without its call. The functions know nothing of any framework's messages, and change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qrhead_rag.core.selection import Selection, select

KEEP_LAST = 3
"""Messages kept ahead of all relevance: the question and the exchange before it, which says what "it" refers to."""

RankTurns: TypeAlias = Callable[[str, Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Message:
    """What matters of one message when a conversation is trimmed.

    Attributes:
        text: what is scored; empty for a message of images alone.
        tokens: what the message costs, by the caller's way of counting.
        role: "system" is always kept, "user" starts a turn.
        calls: ids of the tool calls it makes.
        answers: id of the tool call it is the result of.
    """

    text: str
    tokens: int
    role: Literal["system", "user", "other"] = "other"
    calls: tuple[str, ...] = ()
    answers: str | None = None


def split_turns(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the messages of each turn, oldest first; system messages belong to no turn.

    >>> hello, reply = Message("hello", 1, "user"), Message("good morning", 2)
    >>> split_turns([hello, reply, hello, reply])
    [[0, 1], [2, 3]]
    >>> late = [Message("look it up", 3, "user"), Message("", 1, calls=("a",)), hello, Message("found", 1, answers="a")]
    >>> split_turns(late)
    [[0, 1, 2, 3]]
    """
    turns: list[list[int]] = []
    turn_of_call: dict[str, int] = {}
    for place, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        if message.answers is not None:
            first = turn_of_call.get(message.answers, len(turns) - 1)
            if first < len(turns) - 1:
                turns[first:] = [[earlier for turn in turns[first:] for earlier in turn]]
                turn_of_call = {call: min(turn, first) for call, turn in turn_of_call.items()}
        turns[-1].append(place)
        turn_of_call |= dict.fromkeys(message.calls, len(turns) - 1)
    return turns


def choose_messages(
    messages: Sequence[Message],
    query: str | None,
    *,
    max_tokens: int,
    keep_last: int,
    rank_turns: RankTurns,
) -> list[int]:
    """Indices of the messages to show, in their original order.

    System messages and the last turn are always kept, also over the budget. Then come the turns that hold the last
    `keep_last` messages, newest first, up to the first that does not fit; then older turns by relevance, skipping what
    does not fit. Without any query the most recent turns are kept. Nothing is ranked where everything fits.

    Args:
        messages: the conversation, oldest first.
        query: what the turns are ranked by; None or blank stands for the last user message that has text.
        max_tokens: what the messages may cost together.
        keep_last: how many messages count as recent.
        rank_turns: (query, texts) to indices of the texts, best first. It is given the text of every turn before the
            last that could fit in `max_tokens`, so its input stays the same while the last turn grows.
    """
    turns = split_turns(messages)
    if not turns:
        return list(range(len(messages)))
    costs = [sum(messages[place].tokens for place in turn) for turn in turns]
    system = [place for place, message in enumerate(messages) if message.role == "system"]
    left = max_tokens - sum(messages[place].tokens for place in system) - costs[-1]
    if sum(costs[:-1]) <= left:
        return list(range(len(messages)))

    query = query if query and query.strip() else _last_question(messages)
    kept, recent = {len(turns) - 1}, len(turns[-1])
    for turn in range(len(turns) - 2, -1, -1):
        if (query is not None and recent >= keep_last) or costs[turn] > left:
            break
        kept.add(turn)
        recent += len(turns[turn])
        left -= costs[turn]

    older = [turn for turn in range(len(turns) - 1) if costs[turn] <= max_tokens]
    if query is not None and any(costs[turn] <= left for turn in older if turn not in kept):
        texts = ["\n".join(messages[place].text for place in turns[turn] if messages[place].text) for turn in older]
        ranking = [older[place] for place in rank_turns(query, texts)]
        ranking = [turn for turn in ranking if turn not in kept and costs[turn] <= left]
        kept |= set(select(costs, Selection(max_tokens=max(left, 1)), token_counts=costs, ranking=ranking))
    return sorted([*system, *(place for turn in kept for place in turns[turn])])


def _last_question(messages: Sequence[Message]) -> str | None:
    return next((m.text for m in reversed(messages) if m.role == "user" and m.text.strip()), None)
