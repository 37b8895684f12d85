"""Which counters trim_messages_by_relevance accepts, and what it asks them; as a Runnable it remembers the answers."""

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool

from tests.helpers import exchanges
from tests.helpers.exchanges import APPLES, BEARS, DOORS, HISTORY, QUESTION, trim, words
from tests.helpers.overlap import WordOverlap


@pytest.fixture
def scorer():
    return WordOverlap.of(__file__, exchanges.__file__)


class CountingWords(FakeListChatModel):
    """Counts in words; a tool costs ten."""

    def bind_tools(self, tools, **_):
        return self.bind(tools=tools)

    def get_num_tokens_from_messages(self, messages, tools=None):
        return words(messages) + 10 * len(tools or [])


@tool
def look(topic: str) -> str:
    """Look something up."""
    return topic


MODEL = CountingWords(responses=[])
COUNTERS = {
    "bound": (MODEL.bind(stop=["x"]), 16),
    "configured": (MODEL.with_config(tags=["x"]), 16),
    "retried": (MODEL.with_retry(), 16),
    "with fallbacks": (MODEL.with_fallbacks([MODEL]), 16),
    "with tools": (MODEL.bind_tools([look]), 26),
    "with tools, bound and retried": (MODEL.bind_tools([look]).bind(stop=["x"]).with_retry(), 26),
    "method": (MODEL.get_num_tokens_from_messages, 16),
}


@pytest.mark.parametrize(("counter", "budget"), COUNTERS.values(), ids=COUNTERS)
def test_whatever_counts_is_a_counter(scorer, counter, budget):
    messages = [*HISTORY, QUESTION]
    assert trim(messages, scorer, token_counter=counter, max_tokens=budget) == [*BEARS, *DOORS, QUESTION]
    assert trim(messages, scorer, token_counter=counter, max_tokens=budget - 1) != [*BEARS, *DOORS, QUESTION]


def test_a_counter_is_asked_for_what_could_be_sent(scorer):
    call = {"name": "look", "args": {}, "id": "c", "type": "tool_call"}
    messages = [*HISTORY, HumanMessage("q"), AIMessage("", tool_calls=[call]), ToolMessage("r", tool_call_id="c")]
    asked = []

    def count(messages):
        asked.append(messages)
        assert messages[-1].type != "ai" or not messages[-1].tool_calls, "400: tool_use without tool_result"
        assert messages[0].type == "human", "400: the first message must be the user's"
        return words(messages)

    assert trim(messages, scorer, token_counter=count, max_tokens=99) == messages
    assert asked == [messages]
    asked.clear()
    trim(messages, scorer, token_counter=count)
    assert len(asked) == 1 + 1 + 5 + 1, "the whole, the last turn, each older turn, and the choice"


@pytest.mark.parametrize(
    "message",
    [
        AIMessage(
            [{"type": "text", "text": "x"}], tool_calls=[{"name": "f", "args": {"x": "word " * 1000}, "id": "t"}]
        ),
        AIMessage("", invalid_tool_calls=[{"name": "f", "args": "word " * 1000, "id": "t", "error": None}]),
        AIMessage([{"type": "tool_use", "id": "t", "name": "f", "input": {"x": "word " * 1000}}]),
        AIMessage("", tool_calls=[{"name": "f", "args": {"x": "word " * 1000}, "id": "t"}]),
        AIMessage([{"type": "thinking", "thinking": "word " * 1000}]),
    ],
    ids=["beside blocks", "invalid", "in blocks", "beside text", "thoughts"],
)
def test_the_estimate_counts_every_call_once(scorer, message):
    messages = [*APPLES, HumanMessage("look"), message, HumanMessage("now ?")]
    for budget, kept in ((1400, messages), (1100, [*APPLES, messages[-1]])):
        assert trim(messages, scorer, token_counter="approximate", max_tokens=budget) == kept


def test_without_messages_it_is_a_runnable(scorer):
    asked = []

    def count(messages):
        asked.append(len(messages))
        return words(messages)

    trimmed = trim(None, scorer, token_counter=count)
    chain = ChatPromptTemplate([("placeholder", "{history}")]) | trimmed | RunnableLambda(lambda kept: kept)
    assert chain.invoke({"history": [*HISTORY, QUESTION]}) == [*BEARS, *DOORS, QUESTION]
    assert trimmed.name == "trim_messages_by_relevance"
    assert len(asked) == 1 + 1 + 5 + 1
    assert chain.invoke({"history": [*HISTORY, QUESTION, AIMessage("let me see")]})
    assert len(asked) == 8 + 3, "turns that were counted before are not counted again"
    assert (
        (trim(None, scorer, max_tokens=50) | FakeListChatModel(responses=["so it is"]))
        .invoke([("human", "hello")])
        .text
    )


async def test_the_runnable_is_async_too(scorer):
    assert await trim(None, scorer).ainvoke([*HISTORY, QUESTION]) == [*BEARS, *DOORS, QUESTION]
    assert await trim(None, scorer).abatch([[QUESTION], [*HISTORY, QUESTION]]) == [
        [QUESTION],
        [*BEARS, *DOORS, QUESTION],
    ]
