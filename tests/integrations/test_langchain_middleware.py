"""QRHeadMemoryMiddleware in agents made by the real create_agent."""

import copy
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_qrhead import QRHeadMemoryMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import PrivateAttr

from qrhead_rag import QRRetriever
from tests.helpers.modes import MODES
from tests.helpers.overlap import WordOverlap
from tests.helpers.tiny import tiny_model, tiny_tokenizer


def words(messages) -> int:
    return sum(len(message.text.split()) for message in messages)


@tool
def look_up(topic: str) -> str:
    """Look something up."""
    return f"{topic} sleep in winter"


class Scripted(BaseChatModel):
    """Looks bears up twice at once, then answers; remembers what it was visible."""

    _requests: list[list[Any]] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools, **_):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **_):
        self._requests.append(list(messages))
        number = len(self._requests)
        if isinstance(messages[-1], ToolMessage):
            answer = AIMessage("so it is")
        else:
            calls = [{"name": "look_up", "args": {"topic": "bears"}, "id": f"{number}.{k}"} for k in range(2)]
            answer = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])


@pytest.fixture
def scorer():
    return WordOverlap.of(__file__)


def assert_sound(visible):
    """What a chat model accepts: every result after its call, every call with its results."""
    open_calls = set()
    for message in visible:
        if isinstance(message, AIMessage):
            open_calls |= {call["id"] for call in message.tool_calls}
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in open_calls
            open_calls.remove(message.tool_call_id)
    assert not open_calls


def history():
    topics = ("apples", "bears", "clouds", "doors", "eels")
    return [
        message
        for topic in topics
        for message in (
            HumanMessage(f"about {topic} please", id=f"ask {topic}"),
            AIMessage(f"here is {topic}", id=f"tell {topic}"),
        )
    ]


QUESTION = HumanMessage("now bears or doors", id="question")


def middleware(scorer, **options):
    return QRHeadMemoryMiddleware(
        **{"max_tokens": 18, "token_counter": words, "keep_last": 1, "scorer": scorer, **options}
    )


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_model_sees_what_matters_and_the_state_stays_whole(scorer, is_async):
    model = Scripted()
    agent = create_agent(model, [look_up], system_prompt="be kind", middleware=[middleware(scorer, max_tokens=20)])
    inputs = {"messages": [*history(), QUESTION]}
    before = copy.deepcopy(inputs)
    state = await agent.ainvoke(inputs) if is_async else agent.invoke(inputs)
    assert inputs == before
    assert len(state["messages"]) == 11 + 4
    assert [message.text for message in state["messages"][:11]] == [message.text for message in before["messages"]]
    first, second = model._requests
    assert isinstance(first[0], SystemMessage)
    assert [m.text for m in first[1:]] == [m.text for m in [*history()[2:4], *history()[6:8], inputs["messages"][-1]]]
    assert isinstance(second[-1], ToolMessage)
    assert words(first) <= 20
    assert scorer.times_read(QUESTION.text) == 1, "the second step of the loop asks the same of the same history"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.slow
async def test_sixty_turns_with_tools(scorer, is_async):
    model = Scripted()
    agent = create_agent(
        model,
        [look_up],
        system_prompt="be kind",
        middleware=[middleware(scorer, max_tokens=60, keep_last=3)],
        checkpointer=InMemorySaver(),
    )
    config = {"configurable": {"thread_id": "t"}}
    for number in range(60):
        inputs = {"messages": [HumanMessage(f"question {number} on bears")]}
        state = await agent.ainvoke(inputs, config) if is_async else agent.invoke(inputs, config)
    assert len(state["messages"]) == 60 * 5
    assert_sound(state["messages"])
    assert len(model._requests) == 120
    for visible in model._requests:
        assert_sound(visible)
        assert words(visible) <= 60
        assert isinstance(visible[0], SystemMessage)
        assert any(isinstance(message, HumanMessage) for message in visible)
    assert max(map(len, model._requests)) < 25


def test_sixty_steps_in_one_turn_stay_whole(scorer):
    steps = []
    for number in range(60):
        steps.append(AIMessage("", tool_calls=[{"name": "look_up", "args": {"topic": "x"}, "id": str(number)}]))
        steps.append(ToolMessage("bears sleep in winter", tool_call_id=str(number)))
    seen = []
    request = ModelRequest(model=Scripted(), messages=[*history(), HumanMessage("go"), *steps])
    middleware(scorer).wrap_model_call(request, lambda r: seen.append(r.messages) or ModelResponse(result=[]))
    assert seen == [[HumanMessage("go"), *steps]]


@pytest.mark.parametrize("mode", MODES)
def test_with_a_real_model_in_every_mode(mode):
    scorer = QRRetriever(tiny_model(max_position_embeddings=2048), tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=mode)
    model = Scripted()
    agent = create_agent(model, [look_up], middleware=[middleware(scorer, max_tokens=30)])
    state = agent.invoke({"messages": [*history(), QUESTION]})
    assert len(state["messages"]) == 15
    assert all(words(visible) <= 30 for visible in model._requests)
    assert len(model._requests[0]) == 9


def test_the_request_itself_is_not_changed(scorer):
    messages = [*history(), QUESTION]
    request = ModelRequest(model=Scripted(), messages=messages, system_message=SystemMessage("be kind"))
    before = copy.deepcopy(messages)
    seen = []
    middleware(scorer).wrap_model_call(request, lambda r: seen.append(r) or ModelResponse(result=[]))
    assert request.messages is messages
    assert messages == before
    assert seen[0].system_message is request.system_message
    assert len(seen[0].messages) < len(messages)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"keep_last": 0}, {"token_counter": 5}, {"modle": "x"}, {"mode": "x"}]
)
def test_wrong_options_are_refused_by_name(options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name):
        QRHeadMemoryMiddleware(**{"max_tokens": 10, **options})
