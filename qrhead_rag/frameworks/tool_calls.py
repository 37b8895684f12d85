"""Ids of the tool calls that are made and answered, in the formats that providers write.

Every provider refuses half a pair. Calls and results need no messages of their own: Anthropic writes `tool_use` and
`tool_result` blocks, OpenAI `function_call` and `function_call_output` items, Bedrock and Gemini the keys `toolUse` and
`functionResponse`, and each has a dozen more. The ends of their names are alike.
"""

from collections.abc import Iterable, Mapping
from typing import Any

_MADE = ("use", "call", "request", "function")
_ANSWERED = ("result", "output", "response")
_IDS_MADE = ("call_id", "toolUseId", "id")
_IDS_ANSWERED = ("tool_use_id", "toolUseId", "tool_call_id", "call_id", "approval_request_id")
_GEMINI = ("id", "name")  # pairs by name where there is no id


def block_ids(block: Any) -> tuple[str | None, str | None]:
    """Id of the tool call that a content block makes, and of the one that it answers.

    >>> block_ids({"type": "tool_use", "id": "a", "name": "look", "input": {}})
    ('a', None)
    >>> block_ids({"type": "function_call_output", "id": "fc_1", "call_id": "a", "output": "found"})
    (None, 'a')
    >>> block_ids({"toolResult": {"toolUseId": "a", "content": []}})
    (None, 'a')
    >>> block_ids({"type": "text", "text": "good morning"})
    (None, None)
    """
    if not isinstance(block, Mapping) or not block:
        return None, None
    kind, content = (block["type"], block) if "type" in block else next(iter(block.items()))
    if kind == "non_standard":  # how LangChain wraps what it does not know
        return block_ids(block.get("value"))
    kind = str(kind).replace("_", "").lower()
    if kind.endswith(_ANSWERED):
        return None, _first(content, _IDS_ANSWERED + _GEMINI * (kind == "functionresponse"))
    if kind.endswith(_MADE):
        return _first(content, _IDS_MADE + _GEMINI * (kind == "functioncall")), None
    return None, None


def ids_made(extra: Mapping[str, Any]) -> list[str]:
    """Ids of the calls among a message's additional fields; the oldest format knows calls by their function's name."""
    calls: Iterable[Any] = extra.get("tool_calls") or ()
    fields = [call if isinstance(call, Mapping) else getattr(call, "__dict__", {}) for call in calls]
    ids = [_first(call, _IDS_MADE) for call in fields] + [_first(extra.get("function_call"), ("name",))]
    return [call for call in ids if call]


def ids_answered(extra: Mapping[str, Any]) -> list[str]:
    """Ids of the calls that a message answers, by its additional fields."""
    call = _first(extra, ("tool_call_id", "call_id"))
    return [call] if call else []


def _first(fields: Any, names: Iterable[str]) -> str | None:
    values = (fields.get(name) for name in names) if isinstance(fields, Mapping) else ()
    return next((value for value in values if isinstance(value, str) and value), None)
