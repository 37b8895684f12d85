"""Turns over a cap in the memories of both frameworks, and the reasons that they report."""

import copy

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_qrhead import QRHeadMemoryMiddleware
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.postprocessor.qrhead import QRHeadMemory

from tests.helpers import exchanges
from tests.helpers.exchanges import HISTORY, QUESTION, trim, words
from tests.helpers.overlap import WordOverlap

LOG = "nothing was seen . " * 200 + "the bears sleep in winter . " + "nothing was heard . " * 200


@pytest.fixture(scope="module")
def scorer():
    return WordOverlap.of(__file__, exchanges.__file__)


def tool_turn(content):
    call = {"name": "look_up", "args": {"topic": "bears"}, "id": "a"}
    return [HumanMessage("about bears"), AIMessage("", tool_calls=[call]), content]


@pytest.mark.parametrize(
    "result",
    [
        ToolMessage(LOG, tool_call_id="a", name="look_up", id="result"),
        ToolMessage([{"type": "text", "text": LOG}, {"type": "image", "id": "b"}], tool_call_id="a", id="result"),
        HumanMessage([{"type": "tool_result", "tool_use_id": "a", "content": LOG}], id="result"),
    ],
)
def test_langchain_cuts_text_alone(scorer, result):
    messages = tool_turn(result)
    before = copy.deepcopy(messages)
    shown = trim(messages, scorer, max_tokens=100, max_turn_tokens=70, token_counter=lambda ms: len(str(ms).split()))
    assert messages == before
    assert shown[:2] == messages[:2]
    cut = shown[2]
    assert type(cut) is type(result)
    assert {**vars(cut), "content": 0} == {**vars(result), "content": 0}
    assert "the bears sleep in winter" in str(cut.content)
    assert "[…]" in str(cut.content)
    assert len(str(cut.content)) < len(LOG) / 2
    if isinstance(cut.content, list):
        assert [block["type"] for block in cut.content] == [block["type"] for block in result.content]
        assert cut.content[1:] == result.content[1:]


def test_a_number_that_caps_nothing_is_refused(scorer):
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="max_turn_tokens"):
            trim(HISTORY, scorer, max_turn_tokens=wrong)


def test_the_middleware_writes_its_reasons_to_the_state_on_request(scorer):
    messages = [message.model_copy(update={"id": str(index)}) for index, message in enumerate([*HISTORY, QUESTION])]
    options = {"max_tokens": 18, "token_counter": words, "keep_last": 1, "scorer": scorer}
    model = FakeListChatModel(responses=["so it is"])
    for report in (False, True):
        middleware = QRHeadMemoryMiddleware(**options, report_reasons=report)
        state = create_agent(model, [], middleware=[middleware]).invoke({"messages": messages})
        assert len(state["messages"]) == 12
        assert ("memory_reasons" in state) == report
    reasons = state["memory_reasons"]
    assert {index: why["kind"] for index, why in reasons.items()} == {
        "2": "relevant",
        "3": "relevant",
        "6": "relevant",
        "7": "relevant",
        "10": "last turn",
    }
    assert reasons["2"]["evidence"] == reasons["3"]["evidence"] > 0
    assert reasons["2"]["reason"].startswith("relevant, evidence 0.")
    assert reasons["10"] == {"kind": "last turn", "evidence": None, "reason": "last turn, always kept"}


def test_llama_index_shows_a_cut_copy_and_says_why(scorer):
    memory = QRHeadMemory.from_defaults(
        token_limit=100, max_turn_tokens=40, tokenizer_fn=str.split, scorer=scorer, keep_last=1
    )
    blocks = [TextBlock(text=LOG), ImageBlock(image=b"picture")]
    memory.image_token_size_estimate = 1
    memory.put_messages(
        [
            ChatMessage(role="user", content="about bears"),
            ChatMessage(role="tool", blocks=blocks, additional_kwargs={"tool_call_id": "a"}),
            ChatMessage(role="user", content="do bears sleep"),
        ]
    )
    shown = memory.get()
    assert [message.role.value for message in shown] == ["user", "tool", "user"]
    assert "the bears sleep in winter" in shown[1].content
    assert "[…]" in shown[1].content
    assert len(f"{shown[0].content} {shown[1].content}".split()) < 40
    assert shown[1].blocks[1] == blocks[1]
    assert shown[1].additional_kwargs == {"tool_call_id": "a"}
    assert memory.get_all()[1].content == LOG
    assert [why.index for why in memory.last_reasons()] == [0, 1, 2]
    assert memory.last_reasons()[1].reason.endswith("cut")
    assert QRHeadMemory.from_defaults(max_turn_tokens=7).max_turn_tokens == 7
