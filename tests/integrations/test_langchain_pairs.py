"""Who speaks in a message, and which tool calls it makes and answers, in whatever form a provider writes it."""

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    trim_messages,
)

from tests.helpers import exchanges
from tests.helpers.exchanges import APPLES, BEARS, CLOUDS, DOORS, HISTORY, QUESTION, trim, words
from tests.helpers.overlap import WordOverlap


@pytest.fixture
def scorer():
    return WordOverlap.of(__file__, exchanges.__file__)


def block_pair(call, result):
    return AIMessage([call]), HumanMessage([result])


PAIRS = {
    "Anthropic": block_pair(
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "bears sleep"}]},
    ),
    "Anthropic, calls parsed": (
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "t"}]),
        HumanMessage([{"type": "tool_result", "tool_use_id": "t", "content": "bears sleep"}]),
    ),
    "OpenAI": block_pair(
        {"type": "function_call", "id": "fc_1", "call_id": "t", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t", "output": "bears sleep"},
    ),
    "Bedrock": block_pair(
        {"toolUse": {"toolUseId": "t", "name": "f", "input": {}}},
        {"toolResult": {"toolUseId": "t", "content": [{"text": "bears sleep"}]}},
    ),
    "Gemini": block_pair(
        {"functionCall": {"name": "f", "args": {}}}, {"functionResponse": {"name": "f", "response": {"bears": "sleep"}}}
    ),
    "LangChain": block_pair(
        {"type": "non_standard", "value": {"type": "mcp_tool_use", "id": "t", "name": "f"}},
        {"type": "non_standard", "value": {"type": "mcp_tool_result", "tool_use_id": "t"}},
    ),
    "roles": (
        ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [{"id": "t", "type": "function"}]}),
        ChatMessage(role="tool", content="bears sleep", additional_kwargs={"tool_call_id": "t"}),
    ),
    "functions": (
        AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
        FunctionMessage("bears sleep", name="f"),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_calls_and_results_in_content_blocks_stay_together(scorer, pair):
    looked = [HumanMessage("q"), *pair]
    assert trim(looked, scorer, max_tokens=1, token_counter=len) == looked
    late = [HumanMessage("q"), pair[0], HumanMessage("quick please"), pair[1], AIMessage("they sleep")]
    for budget in range(1, 11):
        kept = trim([*APPLES, *late, *CLOUDS, QUESTION], scorer, "bears", max_tokens=budget, token_counter=len)
        assert [message for message in kept if message in late] in ([], late)
    assert late[0] in kept


def test_results_in_blocks_are_ranked_as_those_of_tool_messages(scorer):
    call, result = PAIRS["Anthropic"]
    looked = [HumanMessage("look it up"), call, result]
    kept = trim([*looked, *CLOUDS, *DOORS, HumanMessage("which bears")], scorer, max_tokens=6)
    assert kept == [*looked, HumanMessage("which bears")]


def test_what_the_user_says_beside_a_result_is_a_question(scorer):
    call, result = PAIRS["Anthropic"]
    spoken = HumanMessage([*result.content, {"type": "text", "text": "and eels"}])
    trim([*HISTORY, HumanMessage("look"), call, spoken], scorer)
    assert scorer.times_read("and eels") == 1
    document = {"type": "search_result", "source": "book", "title": "Eels", "content": [{"type": "text", "text": "x"}]}
    assert trim([*APPLES, HumanMessage([document])], scorer, max_tokens=1) == [HumanMessage([document])]


SUMMARY = HumanMessage("bears were seen", additional_kwargs={"lc_source": "summarization"})


def test_what_a_program_adds_is_kept_and_is_no_question(scorer):
    assert trim([SUMMARY, *HISTORY, QUESTION], scorer, max_tokens=1) == [SUMMARY, QUESTION]
    skill = HumanMessage("about clouds please", additional_kwargs={"lc_source": "pinned_skill"})
    assert trim([*HISTORY, QUESTION, skill], scorer, max_tokens=21) == [*BEARS, *DOORS, QUESTION, skill]
    called = [SUMMARY, *PAIRS["Anthropic"]]
    assert trim(called, scorer, max_tokens=1) == called


def test_workers_do_not_ask_the_question(scorer):
    work = [HumanMessage("about clouds please", name="researcher"), AIMessage("to the writer", name="supervisor")]
    assert trim([*HISTORY, QUESTION, *work], scorer, max_tokens=24) == [*BEARS, *DOORS, QUESTION, *work]
    talk = [HumanMessage(message.text, name="Ines") if message.type == "human" else message for message in HISTORY]
    named = HumanMessage(QUESTION.text, name="Tobias")
    assert trim([*talk, named], scorer) == [*talk[2:4], *talk[6:8], named], "where all have names they are users"


def test_start_on_human_is_as_in_trim_messages(scorer):
    messages = [SystemMessage("be kind"), AIMessage("welcome"), *APPLES]
    options = {"max_tokens": 50, "token_counter": words, "start_on": "human"}
    assert trim(messages, scorer, **options) == trim_messages(messages, include_system=True, **options)
    assert trim(messages, scorer, max_tokens=50) == messages
    assert trim(messages[:2], scorer, start_on="human") == messages[:2], "the last turn stays"
