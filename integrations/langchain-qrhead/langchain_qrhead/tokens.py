"""TokenCounts: the tokens of messages and of the tools beside them, by whatever can count."""

import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.utils.function_calling import convert_to_openai_tool

from qrhead_rag.frameworks.tool_calls import block_ids

TokenCounter: TypeAlias = (
    Callable[[list[BaseMessage]], int]
    | Callable[[BaseMessage], int]
    | BaseLanguageModel[Any]
    | Runnable[Any, Any]
    | Literal["approximate"]
)

_REMEMBERED = 4096  # counts of one counter


class TokenCounts:
    """Counts messages as they are sent together, by any counter of `trim_messages`, and remembers what it counted.

    A provider's counter costs a request, and an agent asks for the same turns at every step. Only digests of what was
    counted are kept.

    Raises:
        TypeError: `token_counter` is neither a function, nor has it `get_num_tokens_from_messages`, nor is it
            "approximate".

    >>> TokenCounts(len)([AIMessage("good"), AIMessage("morning")])
    2
    """

    def __init__(self, token_counter: TokenCounter) -> None:
        self._tools: Sequence[Any] = ()
        counter: Any = token_counter
        while isinstance(counter, RunnableBindingBase):
            self._tools = self._tools or counter.kwargs.get("tools") or ()
            counter = counter.bound
        if hasattr(counter, "get_num_tokens_from_messages"):
            self._count: Callable[..., int] = counter.get_num_tokens_from_messages
        elif counter == "approximate":
            self._count = _approximate
        elif callable(counter):
            self._count = partial(_sum_of, counter) if _takes_one_message(counter) else counter
        else:
            raise TypeError(
                f"token_counter={token_counter!r} cannot count; expected a function of messages, a language model, "
                "or 'approximate'"
            )
        self._counts_tools = None if "tools" in _parameters(self._count) else False
        self._remembered: dict[bytes, int] = {}

    def __call__(self, messages: Sequence[BaseMessage]) -> int:
        """Tokens of these messages, and of the tools that are bound to the counter."""
        return self.beside([], ())(messages)

    def count_alone(self, messages: Sequence[BaseMessage]) -> int:
        """Tokens of these messages with no tools, not even those bound to the counter."""
        return self._recall([], (), "", messages)

    def beside(self, system: Sequence[BaseMessage], tools: Sequence[Any]) -> Callable[[Sequence[BaseMessage]], int]:
        """A counter of messages that are sent after `system` and with `tools`; without, those bound to the counter."""
        tools = tools or self._tools
        schemas = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]
        return partial(self._recall, system, tools, "\n".join(json.dumps(schema, default=str) for schema in schemas))

    def _recall(
        self, system: Sequence[BaseMessage], tools: Sequence[Any], schemas: str, messages: Sequence[BaseMessage]
    ) -> int:
        together = [*system, *messages]
        content = [(message.type, vars(message)) for message in together]  # a message's own repr is slow
        key = blake2b(repr((content, schemas)).encode(), digest_size=16).digest()
        tokens = self._remembered.get(key)
        if tokens is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            tokens = self._remembered[key] = self._with_tools(together, tools, schemas)
        return tokens

    def _with_tools(self, messages: list[BaseMessage], tools: Sequence[Any], schemas: str) -> int:
        if not messages or not tools:
            return self._count(messages)
        if self._counts_tools is None:
            with warnings.catch_warnings():  # some models take tools, and warn that they ignore them
                warnings.simplefilter("ignore")
                tokens = self._count(messages, tools=tools)
            self._counts_tools = tokens > self._count(messages)
        elif self._counts_tools:
            tokens = self._count(messages, tools=tools)
        if self._counts_tools:
            return tokens
        return self._count([_with_text(messages[0], schemas), *messages[1:]])


def _takes_one_message(counter: Callable[..., int]) -> bool:
    first = next(iter(_parameters(counter).values()), None)
    return first is not None and first.annotation in (BaseMessage, "BaseMessage")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:  # a built-in has no signature
        return {}


def _sum_of(counter: Callable[[BaseMessage], int], messages: Sequence[BaseMessage]) -> int:
    return sum(map(counter, messages))


def _approximate(messages: Sequence[BaseMessage]) -> int:
    """LangChain's estimate, and the tool calls that it leaves out: those beside content blocks, and invalid ones."""
    return count_tokens_approximately([_with_text(message, *_uncounted_calls(message)) for message in messages])


def _uncounted_calls(message: BaseMessage) -> list[str]:
    if not isinstance(message, AIMessage):
        return []
    blocks = [block_ids(block)[0] for block in message.content] if isinstance(message.content, list) else None
    calls = [call for call in message.tool_calls if blocks is not None and call["id"] not in blocks]
    return [repr(call) for call in [*calls, *message.invalid_tool_calls]]


def _with_text(message: BaseMessage, *texts: str) -> BaseMessage:
    if not texts:
        return message
    text, content = "\n".join(texts), message.content
    longer = f"{content}\n{text}" if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return message.model_copy(update={"content": longer})
