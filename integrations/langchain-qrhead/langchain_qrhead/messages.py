"""trim_messages_by_relevance: a conversation trimmed to a token budget by relevance to the question."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, overload

from langchain_core.messages import (
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    MessageLikeRepresentation,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_qrhead.texts import texts_of, with_texts
from langchain_qrhead.tokens import TokenCounter, TokenCounts
from qrhead_rag import QRRetriever
from qrhead_rag.frameworks.conversation import KEEP_LAST, KeptMessage, Message, TurnCap, choose_messages
from qrhead_rag.frameworks.history import HistoryScorerOptions, rank_history
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.frameworks.tool_calls import block_ids, ids_answered, ids_made

Conversation: TypeAlias = Iterable[MessageLikeRepresentation] | PromptValue

_embedded = HistoryScorerOptions()


@overload
def trim_messages_by_relevance(
    messages: None = None,
    query: str | None = None,
    *,
    max_tokens: int,
    token_counter: TokenCounter = "approximate",
    keep_last: int = KEEP_LAST,
    max_turn_tokens: int | None = None,
    start_on: Literal["human"] | None = None,
    scorer: QRRetriever | ScorerOptions | None = None,
) -> Runnable[Any, list[BaseMessage]]: ...


@overload
def trim_messages_by_relevance(
    messages: Conversation,
    query: str | None = None,
    *,
    max_tokens: int,
    token_counter: TokenCounter = "approximate",
    keep_last: int = KEEP_LAST,
    max_turn_tokens: int | None = None,
    start_on: Literal["human"] | None = None,
    scorer: QRRetriever | ScorerOptions | None = None,
) -> list[BaseMessage]: ...


def trim_messages_by_relevance(
    messages: Conversation | None = None,
    query: str | None = None,
    *,
    max_tokens: int,
    token_counter: TokenCounter = "approximate",
    keep_last: int = KEEP_LAST,
    max_turn_tokens: int | None = None,
    start_on: Literal["human"] | None = None,
    scorer: QRRetriever | ScorerOptions | None = None,
) -> list[BaseMessage] | Runnable[Any, list[BaseMessage]]:
    """The messages to show a model: the recent ones and the older ones that are relevant to the query.

    System messages, summaries and the last turn (the last user message and all that follows it) are always kept, even
    over the budget. Then come the last `keep_last` messages, then older turns by relevance. Turns stay whole, so that
    no tool result loses its call, and in their order. If everything fits, nothing is scored. The messages are returned
    unchanged, but for turns over `max_turn_tokens`. Without messages it is a Runnable, which counts no turn twice:
    `trim_messages_by_relevance(...) | model`.

    >>> messages = [("human", "When does the ferry leave?")]
    >>> [message.text for message in trim_messages_by_relevance(messages, max_tokens=50)]
    ['When does the ferry leave?']

    Args:
        messages: the conversation, oldest first, as for `trim_messages`.
        query: ranks the turns; None or blank is the last user message with text.
        max_tokens: budget of all messages together, and of the tools that are bound to `token_counter`.
        token_counter: as for `trim_messages`: a function of a list of messages or of one message, a language model, or
            "approximate". A model may have tools bound to it. It is asked for the whole, then for whole turns.
        keep_last: number of latest messages that are kept regardless of relevance, with their whole turns.
        max_turn_tokens: what a turn may cost by itself; the longest texts of one that costs more are cut, in a copy, to
            the sentences that matter to the query. None cuts nothing.
        start_on: "human" leaves out what stands before the first user message, which some providers refuse.
        scorer: a QRRetriever (best in mode `late`), or the options that load one; None is the small embedded
            model.

    Raises:
        ValueError: `max_tokens`, `keep_last` or `max_turn_tokens` is less than 1, or `start_on` is unknown.
        TypeError: `token_counter` or `query` is of another kind.
    """
    if query is not None and not isinstance(query, str):
        raise TypeError(f"query is {type(query).__name__}; expected str, or None for the last user message")
    check_budget(max_tokens, keep_last, start_on, max_turn_tokens)
    counts = TokenCounts(token_counter)
    trim = partial(
        trim_conversation,
        query=query,
        count_tokens=counts,
        count_alone=counts.count_alone,
        max_tokens=max_tokens,
        keep_last=keep_last,
        max_turn_tokens=max_turn_tokens,
        start_on=start_on,
        options=ScorerOptions(scorer=scorer) if isinstance(scorer, QRRetriever) else scorer or _embedded,
    )
    return RunnableLambda(trim, name="trim_messages_by_relevance") if messages is None else trim(messages)


def trim_conversation(messages: Conversation, **options: Any) -> list[BaseMessage]:
    """As `trim_messages_by_relevance`, with options that have been checked: those of `explain_trimming`."""
    return [message for message, _ in explain_trimming(messages, **options)]


def explain_trimming(
    messages: Conversation,
    *,
    query: str | None,
    count_tokens: Callable[[Sequence[BaseMessage]], int],
    count_alone: Callable[[Sequence[BaseMessage]], int],
    max_tokens: int,
    keep_last: int,
    max_turn_tokens: int | None,
    start_on: Literal["human"] | None,
    options: ScorerOptions,
) -> list[tuple[BaseMessage, KeptMessage]]:
    """The messages to show, those over a cap as cut copies, each with why it is kept."""
    conversation = convert_to_messages(messages)

    def count_cut(indices: Sequence[int], texts: Mapping[int, Sequence[str]]) -> int:
        return count_tokens([with_texts(conversation[index], texts.get(index)) for index in indices])

    cap = None
    if max_turn_tokens is not None:
        cap = TurnCap(max_turn_tokens, count_cut, lambda index: count_alone([conversation[index]]))
    chosen = choose_messages(
        read_messages(conversation),
        query,
        count_tokens=lambda indices: count_tokens([conversation[index] for index in indices]),
        max_tokens=max_tokens,
        keep_last=keep_last,
        rank_turns=lambda question, texts: rank_history(options.load_scorer(), question, texts, cap is not None),
        start_on_user=start_on == "human",
        cap=cap,
    )
    return [(with_texts(conversation[why.index], why.parts), why) for why in chosen]


def check_budget(max_tokens: int, keep_last: int, start_on: str | None, max_turn_tokens: int | None) -> None:
    """Refuse a budget that keeps nothing, and a start that would tear a turn.

    Raises:
        ValueError: a number less than 1, or `start_on` is neither "human" nor None.
    """
    numbers = {"max_tokens": max_tokens, "keep_last": keep_last}
    for name, value in (numbers if max_turn_tokens is None else numbers | {"max_turn_tokens": max_turn_tokens}).items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"{name}={value!r} is not a whole number; expected 1 or more")
        if value < 1:
            raise ValueError(f"{name}={value} keeps nothing; expected 1 or more")
    if start_on not in (None, "human"):
        raise ValueError(f"start_on={start_on!r} would start within a turn; expected 'human' or None")


def read_messages(conversation: Sequence[BaseMessage]) -> list[Message]:
    """What matters of each message.

    A message of the human class is the user's, unless it holds tool results alone, was added by a program, as a summary
    is (then it stays, as system messages do), or comes from a worker: it has a name, and the user's have none.
    """
    human = [message for message in conversation if _is_human(message)]
    nameless = any(message.name is None for message in human if not _is_added(message))
    return [_message(message, nameless) for message in conversation]


def _message(message: BaseMessage, user_is_nameless: bool) -> Message:
    extra, ids = message.additional_kwargs, _block_ids(message)
    calls = [call["id"] for kind in ("tool_calls", "invalid_tool_calls") for call in getattr(message, kind, ())]
    answers = [getattr(message, "tool_call_id", None), message.name if isinstance(message, FunctionMessage) else None]
    results = (_result_text(block) for block, (_, answer) in zip(message.content, ids, strict=False) if answer)
    return Message(
        text=str(message.text) or "\n".join(results),
        role=_role(message, user_is_nameless),
        calls=tuple(call for call in [*calls, *ids_made(extra), *(made for made, _ in ids)] if call),
        answers=tuple(call for call in [*answers, *ids_answered(extra), *(answer for _, answer in ids)] if call),
        parts=texts_of(message),
    )


def _role(message: BaseMessage, user_is_nameless: bool) -> Literal["system", "user", "other"]:
    if _is_human(message):
        return "system" if _is_added(message) else "other" if message.name and user_is_nameless else "user"
    role = message.role if isinstance(message, ChatMessage) else None
    return "system" if isinstance(message, SystemMessage) or role in ("system", "developer") else "other"


def _is_human(message: BaseMessage) -> bool:
    role = message.role if isinstance(message, ChatMessage) else None
    ids = _block_ids(message)
    only_results = ids_answered(message.additional_kwargs) or (ids and all(answer for _, answer in ids))
    return (isinstance(message, HumanMessage) or role in ("user", "human")) and not only_results


def _is_added(message: BaseMessage) -> bool:
    return isinstance(message.additional_kwargs.get("lc_source"), str)


def _block_ids(message: BaseMessage) -> list[tuple[str | None, str | None]]:
    return [block_ids(block) for block in message.content] if isinstance(message.content, list) else []


def _result_text(block: Any) -> str:
    content = block.get("content") or block.get("output") if isinstance(block, dict) else None
    return str(ToolMessage(content, tool_call_id="").text) if isinstance(content, str | list) else ""
