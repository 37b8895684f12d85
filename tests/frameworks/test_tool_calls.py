"""Ids of tool calls and of their results, in the formats of providers."""

from types import SimpleNamespace

import pytest

from qrhead_rag.frameworks.tool_calls import block_ids, ids_answered, ids_made

MADE = [
    {"type": "tool_use", "id": "a", "name": "f"},
    {"type": "server_tool_use", "id": "a", "name": "web_search"},
    {"type": "mcp_tool_use", "id": "a"},
    {"type": "tool_call", "id": "a"},
    {"type": "invalid_tool_call", "id": "a"},
    {"type": "server_tool_call", "id": "a"},
    {"type": "function_call", "id": "fc_1", "call_id": "a"},
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "a"},
    {"type": "computer_call", "id": "cu_1", "call_id": "a"},
    {"type": "mcp_approval_request", "id": "a"},
    {"type": "function_call", "name": "a", "args": {}},
    {"type": "non_standard", "value": {"type": "tool_use", "id": "a"}},
    {"toolUse": {"toolUseId": "a", "name": "f"}},
    {"functionCall": {"name": "a", "args": {}}},
    {"function_call": {"id": "a", "name": "f"}},
]
ANSWERED = [
    {"type": "tool_result", "tool_use_id": "a"},
    {"type": "web_search_tool_result", "tool_use_id": "a"},
    {"type": "code_execution_tool_result", "tool_use_id": "a"},
    {"type": "server_tool_result", "id": "lc_1", "tool_call_id": "a"},
    {"type": "function_call_output", "id": "fco_1", "call_id": "a"},
    {"type": "custom_tool_call_output", "call_id": "a"},
    {"type": "computer_call_output", "call_id": "a"},
    {"type": "mcp_approval_response", "approval_request_id": "a", "id": "x"},
    {"toolResult": {"toolUseId": "a"}},
    {"functionResponse": {"name": "a", "response": {}}},
]
NEITHER = [
    "text",
    None,
    {},
    {"type": "text", "text": "hello", "id": "a"},
    {"type": None},
    {"type": "image", "id": "a"},
    {"type": "reasoning", "id": "a"},
    {"type": "search_result", "title": "a", "id": "a"},
    {"type": "tool_result"},
    {"type": "non_standard", "value": None},
    {"toolUse": None},
    {"text": "a"},
    {1: 2},
]


@pytest.mark.parametrize("block", MADE, ids=str)
def test_calls(block):
    assert block_ids(block) == ("a", None)


@pytest.mark.parametrize("block", ANSWERED, ids=str)
def test_results(block):
    assert block_ids(block) == (None, "a")


@pytest.mark.parametrize("block", NEITHER, ids=str)
def test_other_blocks(block):
    assert block_ids(block) == (None, None)


def test_additional_fields():
    calls = [{"id": "a", "function": {"name": "f"}}, SimpleNamespace(id="b"), {"id": "fc_1", "call_id": "c"}, {}, None]
    assert ids_made({"tool_calls": calls, "function_call": {"name": "d"}}) == ["a", "b", "c", "d"]
    assert ids_made({"tool_calls": None}) == ids_made({}) == ids_answered({"id": "a"}) == []
    assert ids_answered({"tool_call_id": "a"}) == ids_answered({"call_id": "a"}) == ["a"]
