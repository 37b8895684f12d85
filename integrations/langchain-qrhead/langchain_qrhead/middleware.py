"""QRHeadMemoryMiddleware: an agent's model sees the relevant part of a long conversation; the state keeps all of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, cast

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
    )
    from langchain.agents.middleware.types import ContextT, ModelCallResult, OmitFromInput, ResponseT
    from langgraph.types import Command
except ImportError as error:
    raise ImportError(
        "QRHeadMemoryMiddleware needs the package langchain; install it with `pip install langchain-qrhead[agents]`"
    ) from error
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AnyMessage

from langchain_qrhead.messages import check_budget, explain_trimming
from langchain_qrhead.tokens import TokenCounter, TokenCounts
from qrhead_rag.frameworks.conversation import KEEP_LAST
from qrhead_rag.frameworks.history import HistoryScorerOptions

Reason: TypeAlias = dict[str, str | float | None]
"""Why a message was shown: kind, evidence and reason, as `KeptMessage` has them."""


class MemoryState(AgentState[ResponseT]):
    """The state of an agent whose middleware reports its reasons, by the ids of the messages."""

    memory_reasons: NotRequired[Annotated[dict[str, Reason], OmitFromInput]]


class QRHeadMemoryMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Trims what the model of `create_agent` sees to a token budget, by relevance to the latest user message.

    The stored messages are not changed. The selection is that of `trim_messages_by_relevance`; the system prompt and
    the schemas of the tools and of a structured answer count towards the budget. Summaries that another middleware
    writes are kept. One that replaces messages in the call of the model alone, as that of deepagents, stands before
    this one, so that it summarizes the whole conversation.

    Args:
        max_tokens: budget of the system prompt, the schemas and the messages together.
        token_counter: as for `trim_messages_by_relevance`. A counter that knows nothing of tools counts their JSON.
        keep_last: number of latest messages that are kept regardless of relevance, with their whole turns.
        max_turn_tokens: what a turn may cost by itself, as for `trim_messages_by_relevance`. The last user message is
            never cut, a tool result of the running turn is.
        start_on: "human" leaves out what stands before the first user message.
        report_reasons: write to the state of the agent, as `memory_reasons`, why the last call of the model was shown
            what it was: kind, evidence and reason (as `KeptMessage` has them) for the id of each message.
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
        max_turn_tokens: int | None = None,
        start_on: Literal["human"] | None = None,
        report_reasons: bool = False,
        **scorer: Any,
    ) -> None:
        super().__init__()
        check_budget(max_tokens, keep_last, start_on, max_turn_tokens)
        self._max_tokens = max_tokens
        self._counts = TokenCounts(token_counter)
        self._keep_last = keep_last
        self._max_turn_tokens = max_turn_tokens
        self._start_on = start_on
        self._scorer = HistoryScorerOptions(**scorer)
        self._report_reasons = report_reasons
        if report_reasons:
            self.state_schema = MemoryState

    # Quoted, so that it is not evaluated: the result of the oldest langchain is not generic.
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> "ModelCallResult[ResponseT]":
        """Call the model with the relevant messages."""
        messages, reasons = self._trim(request)
        return self._with_reasons(handler(request.override(messages=messages)), reasons)

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> "ModelCallResult[ResponseT]":
        """As wrap_model_call; the messages are chosen in a thread, so the event loop is not blocked."""
        messages, reasons = await asyncio.to_thread(self._trim, request)
        return self._with_reasons(await handler(request.override(messages=messages)), reasons)

    def _with_reasons(
        self, response: ModelResponse[ResponseT], reasons: dict[str, Reason]
    ) -> "ModelCallResult[ResponseT]":
        if not self._report_reasons:
            return response
        return ExtendedModelResponse(response, Command(update={"memory_reasons": reasons}))

    def _trim(self, request: ModelRequest[ContextT]) -> tuple[list[AnyMessage], dict[str, Reason]]:
        system = [request.system_message] if request.system_message else []
        summary, replaced = _pending_summary(request)
        shown = explain_trimming(
            [*summary, *request.messages[replaced:]],
            query=None,
            count_tokens=self._counts.beside(system, [*request.tools, *_answer_schemas(request.response_format)]),
            count_alone=self._counts.count_alone,
            max_tokens=self._max_tokens,
            keep_last=self._keep_last,
            max_turn_tokens=self._max_turn_tokens,
            start_on=self._start_on,
            options=self._scorer,
        )
        trimmed = cast("list[AnyMessage]", [message for message, _ in shown[len(summary) :]])
        reasons: dict[str, Reason] = {
            message.id: {"kind": why.kind, "evidence": why.evidence, "reason": why.reason}
            for message, why in shown
            if message.id
        }
        return [*request.messages[:replaced], *trimmed], reasons


def _pending_summary(request: ModelRequest[Any]) -> tuple[list[AnyMessage], int]:
    """The summary that a middleware behind this one is about to put in place of the first messages, and their number.

    deepagents leaves the messages in the state and replaces them by position, so these must stay where they are.
    """
    event = cast("dict[str, Any]", request.state).get("_summarization_event")
    if not event or event["summary_message"] in request.messages:
        return [], 0
    return [event["summary_message"]], event["cutoff_index"]


def _answer_schemas(response_format: Any) -> list[dict[str, Any]]:
    """The schemas of a structured answer, as tools: that is what they are for most models."""
    if response_format is None:
        return []
    if isinstance(response_format, ProviderStrategy):
        specs = [response_format.schema_spec]
    elif isinstance(response_format, ToolStrategy):
        specs = response_format.schema_specs
    else:
        specs = ToolStrategy(getattr(response_format, "schema", response_format)).schema_specs
    return [
        {
            "type": "function",
            "function": {"name": spec.name, "description": spec.description, "parameters": spec.json_schema},
        }
        for spec in specs
    ]
