"""trim_messages_by_relevance, against the real langchain-core messages."""

import copy

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.messages.utils import count_tokens_approximately

from qrhead_rag.frameworks.history import HistoryScorerOptions
from tests.helpers import exchanges
from tests.helpers.exchanges import APPLES, BEARS, CLOUDS, DOORS, EELS, HISTORY, QUESTION, trim, words
from tests.helpers.overlap import WordOverlap


@pytest.fixture
def scorer():
    return WordOverlap.of(__file__, exchanges.__file__)


def test_what_matters_is_kept_in_order_as_the_same_messages(scorer):
    messages = [*HISTORY, QUESTION]
    before = copy.deepcopy(messages)
    kept = trim(messages, scorer)
    assert kept == [*BEARS, *DOORS, QUESTION]
    assert all(any(message is original for original in messages) for message in kept)
    assert messages == before
    turns = [f"{question.text} {answer.text}" for question, answer in zip(HISTORY[::2], HISTORY[1::2], strict=True)]
    assert [scorer.times_read(text) for text in [QUESTION.text, *turns]] == [1] * 6


@pytest.mark.parametrize("query", ["tell me of clouds", None, " "])
def test_a_query_may_be_given(scorer, query):
    kept = trim([*HISTORY, QUESTION], scorer, query, max_tokens=12)
    assert kept == ([*CLOUDS, QUESTION] if query == "tell me of clouds" else [*BEARS, QUESTION])


def test_system_messages_recent_messages_and_the_last_turn_stay(scorer):
    system = SystemMessage("be kind")
    assert trim([system, *HISTORY, QUESTION], scorer, max_tokens=1) == [system, QUESTION]
    assert trim([system, *HISTORY, QUESTION], scorer, keep_last=3) == [system, *BEARS, *EELS, QUESTION]
    developer = ChatMessage(role="developer", content="be brief")
    assert trim([developer, *HISTORY, QUESTION], scorer, max_tokens=1) == [developer, QUESTION]


def test_any_form_of_messages_is_read(scorer):
    messages = [
        ("human", "about apples please"),
        {"role": "assistant", "content": "here is apples"},
        ("human", "clouds ?"),
    ]
    assert [message.type for message in trim(messages, scorer, max_tokens=50)] == ["human", "ai", "human"]
    assert trim([], scorer) == []


def test_calls_and_results_stay_together(scorer):
    call = {"name": "look", "args": {}, "id": "c", "type": "tool_call"}
    broken = {"name": "look", "args": "{", "id": "d", "error": "no JSON", "type": "invalid_tool_call"}
    looked = [
        HumanMessage("look up bears"),
        AIMessage("", tool_calls=[call], invalid_tool_calls=[broken]),
        HumanMessage("quick please"),
        ToolMessage("bears sleep", tool_call_id="c"),
        ToolMessage("no such tool", tool_call_id="d"),
        AIMessage("they sleep"),
    ]
    messages = [*APPLES, *looked, *CLOUDS, HumanMessage("apples ?")]
    sizes = set()
    for budget in range(1, 50):
        kept = trim(messages, scorer, "bears", max_tokens=budget)
        assert [message for message in kept if message in looked] in ([], looked)
        sizes.add(len(kept))
    assert len(sizes) > 2


def test_text_of_content_blocks_is_ranked_and_the_blocks_stay(scorer):
    picture = {"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}
    seen = HumanMessage([{"type": "text", "text": "bears at night"}, picture, " and cubs"])
    kept = trim([seen, *CLOUDS, *DOORS, HumanMessage("which bears")], scorer, max_tokens=10)
    assert kept[0] is seen
    assert kept[0].content[1] == picture
    assert scorer.times_read(seen.text) == 1
    assert "base64" not in seen.text


def test_a_last_message_of_images_alone_falls_back_on_the_text_before_it(scorer):
    picture = HumanMessage([{"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}])
    trim([*HISTORY, QUESTION, picture], scorer)
    assert scorer.times_read(QUESTION.text) == 2, "as a turn and as the query"


def test_without_any_user_text_the_latest_turns_are_kept(scorer):
    picture = {"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}
    messages = [
        message for n in range(6) for message in (HumanMessage([picture], id=str(n)), AIMessage("one two three"))
    ]
    kept = trim(messages, scorer, max_tokens=7)
    assert kept == messages[-4:]
    assert kept == trim_messages(messages, max_tokens=7, token_counter=words, start_on="human")
    assert scorer.read == []


def of_one(message: BaseMessage) -> int:
    return len(message.text.split())


@pytest.mark.parametrize(
    ("counter", "budget"),
    [
        (words, 16),
        (of_one, 16),
        (lambda messages: words(messages), 16),
        (len, 5),
        ("approximate", count_tokens_approximately([*BEARS, *DOORS, QUESTION])),
        (count_tokens_approximately, count_tokens_approximately([*BEARS, *DOORS, QUESTION])),
        (FakeListChatModel(responses=[], custom_get_token_ids=lambda text: text.split()), 21),
    ],
    ids=["list", "one", "lambda", "len", "approximate", "function", "model"],
)
def test_token_counters_are_those_of_trim_messages(scorer, counter, budget):
    messages = [*HISTORY, QUESTION]
    kept = trim(messages, scorer, token_counter=counter, max_tokens=budget)
    assert kept == [*BEARS, *DOORS, QUESTION]
    assert trim_messages(kept, max_tokens=budget, token_counter=counter) == kept
    assert trim(messages, scorer, token_counter=counter, max_tokens=budget - 1) != kept


def test_options_that_describe_a_scorer_serve_as_one(scorer):
    assert trim([*HISTORY, QUESTION], HistoryScorerOptions(scorer=scorer)) == [*BEARS, *DOORS, QUESTION]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 0}, ValueError),
        ({"max_tokens": 2.5}, ValueError),
        ({"keep_last": 0}, ValueError),
        ({"start_on": "ai"}, ValueError),
        ({"token_counter": 3}, TypeError),
        ({"query": 3}, TypeError),
    ],
)
def test_wrong_options_are_refused_by_name(scorer, options, error):
    (name,) = options
    with pytest.raises(error, match=name):
        trim(HISTORY, scorer, **options)
    with pytest.raises(error, match=name):
        trim(None, scorer, **options)
