"""QRHeadMemoryMiddleware in agents made by the real create_agent."""

import copy
import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, SummarizationMiddleware
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
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


SCHEMA = len(json.dumps(convert_to_openai_tool(look_up)).split())
"""Words of the schema of the tool, which is a part of what the model reads."""


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
    agent = create_agent(
        model, [look_up], system_prompt="be kind", middleware=[middleware(scorer, max_tokens=20 + SCHEMA)]
    )
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
        middleware=[middleware(scorer, max_tokens=60 + SCHEMA, keep_last=3)],
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
    agent = create_agent(model, [look_up], middleware=[middleware(scorer, max_tokens=30 + SCHEMA)])
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


def visible_to_model(middleware, **request):
    seen = []
    request = ModelRequest(**{"model": Scripted(), "messages": [*history(), QUESTION], **request})
    middleware.wrap_model_call(request, lambda r: seen.append(r.messages) or ModelResponse(result=[]))
    return seen[0]


ANSWER = {
    "title": "Answer",
    "type": "object",
    "description": "What to say.",
    "properties": {"text": {"type": "string"}},
}
TOOLS = {
    "a tool": {"tools": [look_up]},
    "a schema": {"tools": [convert_to_openai_tool(look_up)]},
    "what a provider runs": {"tools": [{"type": "web_search", "name": "search", "max_uses": 3}]},
    "an answer by tool": {"response_format": ToolStrategy(ANSWER)},
    "an answer by provider": {"response_format": ProviderStrategy(ANSWER)},
    "an answer by either": {"response_format": AutoStrategy(ANSWER)},
}


@pytest.mark.parametrize("sent", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("system", [None, SystemMessage("be kind")])
def test_schemas_and_system_prompt_are_within_the_budget(scorer, sent, system):
    asked = []

    def count(messages):
        asked.append(words(messages))
        return asked[-1]

    whole = words([*history(), QUESTION, *([system] if system else [])])
    visible_to_model(middleware(scorer, token_counter=count, max_tokens=10_000), system_message=system, **sent)
    schemas = asked[0] - whole
    assert schemas > 4
    exactly = middleware(scorer, max_tokens=whole + schemas)
    assert len(visible_to_model(exactly, system_message=system, **sent)) == 11
    short = middleware(scorer, max_tokens=whole + schemas - 1)
    assert len(visible_to_model(short, system_message=system, **sent)) == 9


def test_a_number_of_messages_is_not_a_number_of_tools(scorer):
    assert len(visible_to_model(middleware(scorer, token_counter=len, max_tokens=11), tools=[look_up])) == 11


class Counting(FakeListChatModel):
    """Counts in words, tools included, as the models of Anthropic do; remembers what it was asked for."""

    counts_tools: bool = True
    _asked: list[tuple[int, bool]] = PrivateAttr(default_factory=list)

    def bind_tools(self, tools, **_):
        return self.bind(tools=tools)

    def get_num_tokens_from_messages(self, messages, tools=None):
        self._asked.append((len(messages), bool(tools)))
        return words(messages) + 1000 * len(tools or []) * self.counts_tools


def counting(**options):
    return Counting(responses=[], **options)


def test_a_model_that_counts_tools_is_given_them(scorer):
    whole = words([*history(), QUESTION])
    ignoring = counting(counts_tools=False)
    for counter, tools in ((counting(), 1000), (ignoring, SCHEMA), (ignoring.bind(stop=["x"]), SCHEMA)):
        for max_tokens, length in ((whole + tools, 11), (whole + tools - 1, 9)):
            memory = middleware(scorer, token_counter=counter, max_tokens=max_tokens)
            assert len(visible_to_model(memory, tools=[look_up])) == length


def test_a_turn_is_counted_once_by_one_middleware(scorer):
    counter = counting()
    memory = middleware(scorer, token_counter=counter, max_tokens=1020)
    for number in range(1, 4):
        visible_to_model(memory, tools=[look_up], messages=[*history(), QUESTION, *[AIMessage("let me see")] * number])
        assert len(counter._asked) <= (9 if number == 1 else 3)
        counter._asked.clear()


ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["before", "after"])


@ORDERS
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_summary_is_shown_as_long_as_it_stands_for_messages(scorer, ours_first, is_async):
    writer = FakeListChatModel(responses=["ships were seen"])
    stack = [
        middleware(scorer, max_tokens=1),
        SummarizationMiddleware(writer, trigger=("messages", 9), keep=("messages", 5)),
    ]
    model = Scripted()
    agent = create_agent(
        model, [look_up], middleware=stack if ours_first else stack[::-1], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}}
    for messages in ([*history(), QUESTION], [HumanMessage("about ferries")], [HumanMessage("about geese")]):
        inputs = {"messages": messages}
        state = await agent.ainvoke(inputs, config) if is_async else agent.invoke(inputs, config)
        for visible in model._requests:
            assert "ships were seen" in visible[0].text
            assert any(message.text == messages[-1].text for message in visible)
            assert_sound(visible)
        assert state["messages"][0].additional_kwargs["lc_source"] == "summarization"
        model._requests.clear()


class ReplacesInTheCall(AgentMiddleware):
    """Puts a summary in place of the first messages of each call, by position, as deepagents does."""

    def wrap_model_call(self, request, handler):
        event = request.state["_summarization_event"]
        return handler(
            request.override(messages=[event["summary_message"], *request.messages[event["cutoff_index"] :]])
        )


@ORDERS
def test_a_summary_that_replaces_messages_in_the_call_is_shown_with_what_matters_of_the_rest(scorer, ours_first):
    summary = HumanMessage("ships were seen", additional_kwargs={"lc_source": "summarization"})
    state = {
        "messages": [*history(), QUESTION],
        "_summarization_event": {"summary_message": summary, "cutoff_index": 2},
    }
    stack = [middleware(scorer, max_tokens=3 + 18), ReplacesInTheCall()]
    visible = []

    def call(request, layers):
        if not layers:
            visible.append(request.messages)
            return ModelResponse(result=[])
        return layers[0].wrap_model_call(request, lambda inner: call(inner, layers[1:]))

    request = ModelRequest(model=Scripted(), messages=state["messages"], state=state)
    call(request, stack if ours_first else stack[::-1])
    assert visible == [[summary, *history()[2:4], *history()[6:8], QUESTION]]


@pytest.mark.parametrize("built_by", ["create_agent, ours first", "create_agent, ours last", "create_deep_agent"])
@pytest.mark.slow
def test_beside_the_summaries_of_deepagents(scorer, built_by):
    deepagents = pytest.importorskip("deepagents")
    from deepagents.backends import StateBackend
    from deepagents.middleware.summarization import SummarizationMiddleware as ReplacingByPosition

    model, writer = Scripted(), FakeListChatModel(responses=["ships were seen"])
    ours = middleware(scorer, max_tokens=20, token_counter=len)
    theirs = ReplacingByPosition(writer, backend=StateBackend(), trigger=("messages", 15), keep=("messages", 5))
    stack = [ours, theirs] if built_by == "create_agent, ours first" else [theirs, ours]
    build = deepagents.create_deep_agent if built_by == "create_deep_agent" else create_agent
    agent = build(model, [look_up], middleware=stack, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    lengths = set()
    for number in range(12):
        before = agent.get_state(config).values.get("_summarization_event")
        state = agent.invoke({"messages": [HumanMessage(f"question {number} on bears")]}, config)
        for request in model._requests:
            visible = [message for message in request if message.type != "system"]
            assert f"question {number} on bears" in [message.text for message in visible]
            assert len(visible) <= 20
            assert_sound(visible)
            if before:
                assert "ships were seen" in visible[0].text
                lengths.add(len(visible))
        model._requests.clear()
    assert len(state["messages"]) == 12 * 5
    assert max(lengths) > 1 + 2 * 5, "the summary and some turns"


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": 0}, {"start_on": "ai"}, {"keep_last": 0}, {"token_counter": 5}, {"modle": "x"}, {"mode": "x"}],
)
def test_wrong_options_are_refused_by_name(options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name):
        QRHeadMemoryMiddleware(**{"max_tokens": 10, **options})
