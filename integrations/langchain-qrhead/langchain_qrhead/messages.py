"""trim_messages_by_relevance: a conversation trimmed to a token budget by relevance to the question."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    MessageLikeRepresentation,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.utils import count_tokens_approximately

from qrhead_rag import QRRetriever
from qrhead_rag.frameworks.conversation import KEEP_LAST, HistoryScorerOptions, Message, choose_messages, rank_history
from qrhead_rag.frameworks.scorer import ScorerOptions

TokenCounter: TypeAlias = (
    Callable[[list[BaseMessage]], int] | Callable[[BaseMessage], int] | BaseLanguageModel[Any] | Literal["approximate"]
)

_embedded = HistoryScorerOptions()


def trim_messages_by_relevance(
    messages: Iterable[MessageLikeRepresentation],
    query: str | None = None,
    *,
    max_tokens: int,
    token_counter: TokenCounter,
    keep_last: int = KEEP_LAST,
    scorer: QRRetriever | ScorerOptions | None = None,
) -> list[BaseMessage]:
    """The messages to show a model: the recent ones and the older ones that are relevant to the query.

    System messages and the last turn (the last user message and all that follows it) are always kept, even over the
    budget. Then come the last `keep_last` messages, then older turns by relevance. Turns stay whole, so that no tool
    result loses its call, and in their order. If everything fits, nothing is scored. The messages are returned
    unchanged.

    >>> messages = [("human", "When does the ferry leave?")]
    >>> [message.text for message in trim_messages_by_relevance(messages, max_tokens=50, token_counter="approximate")]
    ['When does the ferry leave?']

    Args:
        messages: the conversation, oldest first, as for `trim_messages`.
        query: ranks the turns; None or blank is the last user message with text.
        max_tokens: budget of all messages together.
        token_counter: as for `trim_messages`: a function of a list of messages or of one message, a language model, or
            "approximate". It counts message by message.
        keep_last: number of latest messages that are kept regardless of relevance, with their whole turns.
        scorer: a QRRetriever (best in mode `late`), or the options that load one; None is the small embedded
            model.

    Raises:
        ValueError: `max_tokens` or `keep_last` is less than 1.
        TypeError: `token_counter` or `query` is of another kind.
    """
    if query is not None and not isinstance(query, str):
        raise TypeError(f"query is {type(query).__name__}; expected str, or None for the last user message")
    check_budget(max_tokens, keep_last)
    conversation = convert_to_messages(messages)
    count = count_with(token_counter)
    options = ScorerOptions(scorer=scorer) if isinstance(scorer, QRRetriever) else scorer or _embedded
    kept = choose_messages(
        [_message(message, count) for message in conversation],
        query,
        max_tokens=max_tokens,
        keep_last=keep_last,
        rank_turns=lambda question, texts: rank_history(options.load_scorer(), question, texts),
    )
    return [conversation[index] for index in kept]


def check_budget(max_tokens: int, keep_last: int) -> None:
    """Refuse a budget that keeps nothing.

    Raises:
        ValueError: less than 1.
    """
    for name, value in {"max_tokens": max_tokens, "keep_last": keep_last}.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"{name}={value!r} is not a whole number; expected 1 or more")
        if value < 1:
            raise ValueError(f"{name}={value} keeps nothing; expected 1 or more")


def count_with(token_counter: TokenCounter) -> Callable[[BaseMessage], int]:
    """A counter of the tokens of one message, from any counter that `trim_messages` accepts.

    Raises:
        TypeError: neither a function, nor a language model, nor "approximate".
    """
    if token_counter == "approximate":
        return lambda message: count_tokens_approximately([message])
    if isinstance(token_counter, BaseLanguageModel):
        return lambda message: token_counter.get_num_tokens_from_messages([message])
    if not callable(token_counter):
        raise TypeError(
            f"token_counter={token_counter!r} cannot count; expected a function of messages, a language model, "
            "or 'approximate'"
        )
    counter: Callable[[Any], int] = token_counter
    try:
        first = next(iter(inspect.signature(counter).parameters.values()), None)
    except ValueError:  # a built-in has no signature
        first = None
    takes_message = first is not None and first.annotation in (BaseMessage, "BaseMessage")
    return counter if takes_message else lambda message: counter([message])


def _message(message: BaseMessage, count: Callable[[BaseMessage], int]) -> Message:
    calls = [*message.tool_calls, *message.invalid_tool_calls] if isinstance(message, AIMessage) else []
    return Message(
        text=str(message.text),
        tokens=count(message),
        role=_role(message),
        calls=tuple(call["id"] for call in calls if call["id"]),
        answers=message.tool_call_id if isinstance(message, ToolMessage) else None,
    )


def _role(message: BaseMessage) -> Literal["system", "user", "other"]:
    role = message.role if isinstance(message, ChatMessage) else None
    if isinstance(message, SystemMessage) or role in ("system", "developer"):
        return "system"
    return "user" if isinstance(message, HumanMessage) or role in ("user", "human") else "other"
