"""QRHeadMemoryMiddleware: an agent's model sees the relevant part of a long conversation; the state keeps all of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import ContextT, ModelCallResult, ResponseT
except ImportError as error:
    raise ImportError(
        "QRHeadMemoryMiddleware needs the package langchain; install it with `pip install langchain-qrhead[agents]`"
    ) from error
from langchain_core.messages import AnyMessage

from langchain_qrhead.messages import TokenCounter, check_budget, count_with, trim_messages_by_relevance
from qrhead_rag.frameworks.conversation import KEEP_LAST, HistoryScorerOptions


class QRHeadMemoryMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Trims what the model of `create_agent` sees to a token budget, by relevance to the latest user message.

    The stored messages are not changed. The selection is that of `trim_messages_by_relevance`; the system prompt
    counts towards the budget.

    Args:
        max_tokens: budget of the system prompt and messages together.
        token_counter: as for `trim_messages`.
        keep_last: number of latest messages that are kept regardless of relevance, with their whole turns.
        scorer: the options of ScorerOptions: model, heads, mode (here `late`), layout, instruction, device, dtype,
            options, or `scorer`, a loaded QRRetriever, which may be shared.

    Raises:
        ValueError, TypeError: an option is out of range, unknown, or of the wrong kind.

    >>> middleware = QRHeadMemoryMiddleware(max_tokens=2000)  # for create_agent(..., middleware=[middleware])
    >>> middleware.name
    'QRHeadMemoryMiddleware'
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        token_counter: TokenCounter = "approximate",
        keep_last: int = KEEP_LAST,
        **scorer: Any,
    ) -> None:
        super().__init__()
        check_budget(max_tokens, keep_last)
        self._max_tokens = max_tokens
        self._token_counter = token_counter
        count_with(token_counter)  # refuses what cannot count; what it returns cannot be pickled
        self._keep_last = keep_last
        self._scorer = HistoryScorerOptions(**scorer)

    # Quoted, so that it is not evaluated: the result of the oldest langchain is not generic.
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> "ModelCallResult[ResponseT]":
        """Call the model with the relevant messages."""
        return handler(request.override(messages=self._trim(request)))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> "ModelCallResult[ResponseT]":
        """As wrap_model_call; the messages are chosen in a thread, so the event loop is not blocked."""
        return await handler(request.override(messages=await asyncio.to_thread(self._trim, request)))

    def _trim(self, request: ModelRequest[ContextT]) -> list[AnyMessage]:
        system = count_with(self._token_counter)(request.system_message) if request.system_message else 0
        kept = trim_messages_by_relevance(
            request.messages,
            max_tokens=max(1, self._max_tokens - system),
            token_counter=self._token_counter,
            keep_last=self._keep_last,
            scorer=self._scorer,
        )
        return cast("list[AnyMessage]", kept)
