"""QRHeadMemory in LlamaIndex, against the real memory, chat stores, chat engine and agent."""

import pickle

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import mock
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import Memory, StaticMemoryBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import JsonPickleSerializer
from llama_index.postprocessor.qrhead import QRHeadMemory

from tests.helpers.overlap import WordOverlap

pytestmark = [
    # A chat store in memory outlives the event loop that it was opened in, and its thread says so at the end.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:inspect"),
]


@pytest.fixture
def scorer():
    return WordOverlap.of(__file__)


def user(text):
    return ChatMessage(role="user", content=text)


def exchange(topic):
    """A question and its answer: six words."""
    return [user(f"about {topic} please"), ChatMessage(role="assistant", content=f"here is {topic}")]


def memory_of(messages, scorer, **options):
    options = {"token_limit": 18, "keep_last": 1, "tokenizer_fn": str.split, "scorer": scorer, **options}
    memory = QRHeadMemory.from_defaults(**options)
    if messages:  # the store cannot add an empty list
        memory.put_messages(messages)
    return memory


def texts(messages):
    return [message.content for message in messages]


APPLES, BEARS, CLOUDS, DOORS, EELS = (exchange(topic) for topic in ("apples", "bears", "clouds", "doors", "eels"))
HISTORY = [*APPLES, *BEARS, *CLOUDS, *DOORS, *EELS]


def test_it_is_a_memory_that_shows_what_matters_in_the_original_order(scorer):
    memory = memory_of([*HISTORY, user("now bears or doors")], scorer)
    assert isinstance(memory, Memory)
    assert texts(memory.get()) == texts([*BEARS, *DOORS, user("now bears or doors")])


async def test_async_shows_the_same(scorer):
    memory = memory_of([], scorer)
    await memory.aput_messages([*HISTORY, user("now bears or doors")])
    assert texts(await memory.aget()) == texts([*BEARS, *DOORS, user("now bears or doors")])


def test_archived_messages_are_looked_through_and_the_store_is_not_changed(scorer):
    memory = memory_of(HISTORY, scorer)
    before = {status: memory.get_all(status) for status in (None, *MessageStatus)}
    assert len(before[MessageStatus.ARCHIVED]) > len(before[MessageStatus.ACTIVE])
    visible = memory.get("apples")
    assert texts(visible) == texts([*APPLES, *BEARS, *EELS])
    for message in visible:
        message.blocks[0].text += " (edited by an agent)"
    assert {status: memory.get_all(status) for status in (None, *MessageStatus)} == before


@pytest.mark.parametrize("message", ["tell me of clouds", user("tell me of clouds")])
def test_a_given_input_is_the_query(scorer, message):
    memory = memory_of([*HISTORY, user("and doors")], scorer)
    assert texts(memory.get(message)) == texts([*BEARS, *CLOUDS, user("and doors")])
    assert scorer.times_read("tell me of clouds") == 1
    assert scorer.times_read("and doors") == 0


@pytest.mark.parametrize("message", [None, "", "  "])
def test_without_input_the_last_user_message_with_text_is_the_query(scorer, message):
    picture = ChatMessage(role="user", blocks=[ImageBlock(image=b"picture")])
    memory = memory_of([*HISTORY, user("and doors"), picture], scorer, image_token_size_estimate=1)
    memory.get(message)
    assert scorer.times_read("and doors") == 2, "as a turn and as the query"


def test_without_any_text_the_most_recent_turns_are_shown(scorer):
    pictures = [ChatMessage(role="user", blocks=[ImageBlock(image=bytes([n]))]) for n in range(9)]
    memory = memory_of(pictures, scorer, image_token_size_estimate=6)
    assert [message.blocks for message in memory.get()] == [message.blocks for message in pictures[-3:]]
    assert scorer.read == []


def test_the_callers_own_tokens_are_subtracted(scorer):
    memory = memory_of([*HISTORY, user("now bears or doors")], scorer)
    assert texts(memory.get(initial_token_count=4)) == texts([*BEARS, user("now bears or doors")])
    assert texts(memory.get(initial_token_count=500)) == ["now bears or doors"]


def test_recent_messages_come_first_and_the_last_turn_stays_over_the_limit(scorer):
    long = user("word " * 50)
    assert texts(memory_of([*HISTORY, user("apples ?")], scorer, keep_last=3).get()) == texts(
        [*APPLES, *EELS, user("apples ?")]
    )
    assert texts(memory_of([*HISTORY, long], scorer).get()) == [long.content]


def test_system_messages_stay(scorer):
    system = ChatMessage(role="system", content="be kind")
    visible = memory_of([system, *HISTORY, user("apples ?")], scorer, token_limit=10).get()
    assert texts(visible) == texts([system, *APPLES, user("apples ?")])


@pytest.mark.parametrize("as_blocks", [True, False], ids=["ToolCallBlock", "additional_kwargs"])
@pytest.mark.slow
def test_turns_with_tools_stay_whole(scorer, as_blocks):
    if as_blocks:
        call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="c", tool_name="look", tool_kwargs={})])
    else:
        kwargs = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}
        call = ChatMessage(role="assistant", content="", additional_kwargs=kwargs)
    result = ChatMessage(role="tool", content="bears sleep", additional_kwargs={"tool_call_id": "c"})
    looked = [user("look up bears"), call, user("quick please"), result]
    answer = ChatMessage(role="assistant", content="they sleep")
    messages = [*APPLES, *looked, answer, *CLOUDS, user("apples ?")]
    for limit in range(1, 60):
        memory = memory_of(messages, scorer, token_limit=limit)
        visible = [message.model_dump(mode="json") for message in memory.get("bears")]
        turn = [message.model_dump(mode="json") for message in [*looked, answer]]
        assert not [m for m in turn if m in visible] or [m for m in visible if m in turn] == turn


def test_text_is_ranked_and_images_stay(scorer):
    seen = ChatMessage(role="user", blocks=[ImageBlock(image=b"bear"), TextBlock(text="bears at night")])
    memory = memory_of(
        [seen, *CLOUDS, *DOORS, user("which bears")], scorer, token_limit=12, image_token_size_estimate=5
    )
    visible = memory.get()
    assert visible[0].blocks == seen.blocks
    assert len(visible) == 2
    assert scorer.times_read("bears at night") == 1


def test_memory_blocks_are_shown_beside_the_history_within_the_limit(scorer):
    block = StaticMemoryBlock(name="facts", static_content=[TextBlock(text="the user is called Ines")], priority=1)
    options = {"token_limit": 60, "memory_blocks": [block], "chat_history_token_ratio": 0.3}
    memory = memory_of([*HISTORY, user("now bears or doors")], scorer, **options)
    system, *rest = memory.get()
    assert system.role == "system"
    assert "Ines" in system.content
    assert texts(rest) == texts([*BEARS, *DOORS, user("now bears or doors")])


def test_a_step_of_an_agent_asks_the_model_once_for_one_question(scorer):
    memory = memory_of([*HISTORY, user("now bears or doors")], scorer, token_limit=24)
    assert texts(memory.get()) == texts([*BEARS, *CLOUDS, *DOORS, user("now bears or doors")])
    step = ChatMessage(role="assistant", content="let me see")
    memory.put(step)
    assert texts(memory.get()) == texts([*BEARS, *DOORS, user("now bears or doors"), step])
    assert scorer.times_read("now bears or doors") == 1


def test_an_empty_memory_shows_nothing(scorer):
    assert memory_of([], scorer).get("anything") == []


def test_data_and_pickle_round_trips():
    memory = QRHeadMemory.from_defaults(
        token_limit=500, keep_last=7, model="some/model", heads=[(1, 0)], mode="independent", session_id="s"
    )
    for restored in (
        QRHeadMemory.from_dict(memory.to_dict()),
        pickle.loads(pickle.dumps(memory)),
        JsonPickleSerializer().deserialize(JsonPickleSerializer().serialize(memory)),
    ):
        assert restored.to_dict() == memory.to_dict()
        assert (restored.keep_last, restored.heads, restored.mode) == (7, ((1, 0),), "independent")
    assert QRHeadMemory.from_defaults().mode == "late"


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"token_limt": 5}])
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=name):
        QRHeadMemory.from_defaults(**options)


def test_a_chat_history_may_be_given(scorer):
    memory = QRHeadMemory.from_defaults(
        chat_history=HISTORY, token_limit=12, tokenizer_fn=str.split, scorer=scorer, keep_last=1
    )
    assert texts(memory.get("clouds")) == texts([*CLOUDS, *EELS])


def test_a_chat_engine_keeps_its_whole_history_and_shows_the_part_that_matters(scorer):
    memory = memory_of(HISTORY, scorer, token_limit=12)
    engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
    answer = engine.chat("tell of apples")
    assert "about apples please" in str(answer)
    assert "doors" not in str(answer)
    assert len(memory.get_all(None)) == len(HISTORY) + 2


@pytest.mark.skipif(
    not hasattr(mock, "MockFunctionCallingLLM"), reason="this llama-index-core has no model to call tools"
)
@pytest.mark.slow
async def test_an_agent_with_tools_runs_sixty_turns_on_a_trimmed_memory(scorer):
    visible = []

    def respond(messages, **_):
        visible.append(list(messages))
        if messages[-1].role == "tool":
            return ChatMessage(role="assistant", content="so it is")
        call = ToolCallBlock(tool_call_id=f"call-{len(visible)}", tool_name="look_up", tool_kwargs={"topic": "bears"})
        return ChatMessage(role="assistant", blocks=[call])

    def look_up(topic: str) -> str:
        """Look something up."""
        return f"{topic} sleep in winter"

    llm = mock.MockFunctionCallingLLM(response_generator=respond)
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(look_up)], llm=llm, streaming=False)
    memory = memory_of([], scorer, token_limit=80)
    for number in range(60):
        await agent.run(f"question {number} on bears", memory=memory)
    stored = memory.get_all(None)
    assert sum(message.role == "user" for message in stored) == 60
    assert sum(message.role == "tool" for message in stored) == 60
    assert max(len(messages) for messages in visible) < 40
    for messages in visible:
        calls = {b.tool_call_id for m in messages for b in m.blocks if isinstance(b, ToolCallBlock)}
        calls |= {call["id"] for m in messages for call in m.additional_kwargs.get("tool_calls", [])}
        results = [m.additional_kwargs["tool_call_id"] for m in messages if m.role == "tool"]
        assert set(results) <= calls
