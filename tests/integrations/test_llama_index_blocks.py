"""What QRHeadMemory reads in the blocks of messages: every block costs tokens, and calls stay with their results."""

from types import SimpleNamespace

import pytest
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.memory import Memory, StaticMemoryBlock
from llama_index.postprocessor.qrhead import QRHeadMemory

from tests.helpers.overlap import WordOverlap

# A chat store in memory outlives the event loop that it was opened in, and its thread says so at the end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

WORDS = "word " * 1000
BLOCKS = {
    "tool call": ToolCallBlock(tool_call_id="c", tool_name="look", tool_kwargs={"topic": WORDS}),
    "tool call as text": ToolCallBlock(tool_call_id="c", tool_name="look", tool_kwargs=WORDS),
    "thoughts": ThinkingBlock(content=WORDS),
    "source": CitableBlock(title="log", source="book", content=WORDS),
    "citation": CitationBlock(
        cited_content=TextBlock(text=WORDS), source="book", title="log", additional_location_info={}
    ),
}


@pytest.fixture(scope="module")
def scorer():
    return WordOverlap.of(__file__)


def memory_of(messages, scorer, **options):
    options = {"token_limit": 18, "keep_last": 1, "tokenizer_fn": str.split, "scorer": scorer, **options}
    memory = QRHeadMemory.from_defaults(**options)
    memory.put_messages(messages)
    return memory


def user(text):
    return ChatMessage(role="user", content=text)


def answered(text, call="c"):
    return ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": call})


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_block_counts(scorer, block):
    long = [user("look"), ChatMessage(role="assistant", blocks=[block]), answered("it sleeps")]
    for limit, visible in ((5, 1), (1000, 1), (1200, 4)):
        assert len(memory_of([*long, user("and now")], scorer, token_limit=limit).get()) == visible


def test_blocks_count_once(scorer):
    memory = QRHeadMemory.from_defaults(tokenizer_fn=str.split, image_token_size_estimate=7, scorer=scorer)
    plain = Memory.from_defaults(tokenizer_fn=str.split, image_token_size_estimate=7)
    counted = [
        ChatMessage(role="user", blocks=[TextBlock(text="one two"), ImageBlock(image=b"bear")]),
        ChatMessage(role="user", blocks=[TextBlock(text="one"), CachePoint(cache_control={"type": "ephemeral"})]),
        "one two three",
        [TextBlock(text="one two")],
        [user("one"), user("two")],
        [],
    ]
    assert [memory._estimate_token_count(item) for item in counted] == [
        plain._estimate_token_count(item) for item in counted
    ]
    source = CitableBlock(title="log", source="book", content=[ImageBlock(image=b"bear"), TextBlock(text="one two")])
    assert memory._estimate_token_count(ChatMessage(role="user", blocks=[source])) == 7 + 2 + 2
    call = {"id": "c", "function": {"name": "look", "arguments": WORDS}}
    twice = ChatMessage(role="assistant", blocks=[BLOCKS["tool call"]], additional_kwargs={"tool_calls": [call]})
    assert memory._estimate_token_count(twice) == plain._estimate_token_count(twice), "a provider sends it once"


def test_memory_blocks_make_room_for_tool_calls(scorer):
    fact = StaticMemoryBlock(name="facts", static_content=[TextBlock(text="Ines " * 30)], priority=1)
    called = [user("look"), ChatMessage(role="assistant", blocks=[BLOCKS["tool call"]]), answered("it sleeps")]
    visible = memory_of(called, scorer, token_limit=1020, memory_blocks=[fact]).get()
    assert not any("Ines" in (message.content or "") for message in visible)


FUNCTION = {"function_call": {"name": "look", "arguments": "{}"}}
RESPONSES = {"tool_calls": [{"type": "function_call", "id": "fc_1", "call_id": "c", "name": "look"}]}
PAIRS = {
    "block": ({"blocks": [ToolCallBlock(tool_call_id="c", tool_name="look")]}, answered("bears sleep")),
    "additional fields": ({"additional_kwargs": {"tool_calls": [{"id": "c"}]}}, answered("bears sleep")),
    "responses": (
        {"additional_kwargs": RESPONSES},
        ChatMessage(role="tool", content="bears sleep", additional_kwargs={"call_id": "c"}),
    ),
    "result of the user's role": (
        {"blocks": [ToolCallBlock(tool_call_id="c", tool_name="look")]},
        ChatMessage(role="user", content="bears sleep", additional_kwargs={"tool_call_id": "c"}),
    ),
    "functions": (
        {"additional_kwargs": FUNCTION},
        ChatMessage(role="function", content="bears sleep", additional_kwargs={"name": "look"}),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_calls_and_results_stay_together(scorer, pair):
    call, result = pair
    late = [user("look up"), ChatMessage(role="assistant", **call), user("quick please"), result]
    messages = [*late, ChatMessage(role="assistant", content="they sleep"), user("about doors"), user("and now")]
    turn = [message.model_dump(mode="json") for message in messages[:5]]
    lengths = set()
    for limit in range(1, 60, 4):
        visible = [m.model_dump(mode="json") for m in memory_of(messages, scorer, token_limit=limit).get("bears")]
        assert [message for message in visible if message in turn] in ([], turn)
        lengths.add(len(visible))
    assert {1, 7} <= lengths


def test_calls_that_are_objects_of_a_client_are_read(scorer):
    from llama_index.postprocessor.qrhead.memory import _message

    call = SimpleNamespace(id="c", function=SimpleNamespace(name="look"))
    message = ChatMessage.model_construct(role="assistant", blocks=[], additional_kwargs={"tool_calls": [call]})
    assert _message(message).calls == ("c",)
