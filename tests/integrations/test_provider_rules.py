"""Trimmed conversations stand before the rules of Anthropic and OpenAI, and before their own clients.

This holds in whatever order the turns are relevant, so that here chance ranks them.
"""

import random
from functools import partial
from itertools import product

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, convert_to_openai_messages
from langchain_qrhead import trim_messages_by_relevance
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.postprocessor.qrhead import QRHeadMemory

from qrhead_rag.frameworks.history import TurnRanking
from tests.helpers.histories import STYLES, random_history
from tests.helpers.overlap import WordOverlap
from tests.helpers.providers import (
    RefusedError,
    check_anthropic,
    check_openai_chat,
    check_openai_responses,
    count_words,
    loopback,
    to_anthropic,
    to_openai_responses,
)

HISTORIES = 200


@pytest.fixture(scope="module")
def scorer():
    return WordOverlap.of(__file__)


@pytest.fixture(autouse=True)
def _chance_ranks(monkeypatch):
    def rank(scorer, query, texts, evidence=False):
        return TurnRanking(tuple(random.Random(f"{query} {texts}").sample(range(len(texts)), len(texts))))

    monkeypatch.setattr("langchain_qrhead.messages.rank_history", rank)
    monkeypatch.setattr("llama_index.postprocessor.qrhead.memory.rank_history", rank)


@pytest.fixture(scope="module")
def server():
    with loopback() as running:
        yield running


def to_openai_chat(messages):
    return {"model": "loopback", "messages": convert_to_openai_messages(messages)}


def anthropic_client(server):
    client = pytest.importorskip("anthropic").Anthropic(base_url=server.url, api_key="none", max_retries=0)
    return lambda request: client.messages.create(**request)


def openai_chat_client(server):
    client = pytest.importorskip("openai").OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return lambda request: client.chat.completions.create(**request)


def openai_responses_client(server):
    client = pytest.importorskip("openai").OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return lambda request: client.responses.create(**request)


# What each provider is asked: how a conversation is written, how it becomes a request, where that goes, who sends it.
PROVIDERS = {
    "Anthropic, messages": ("messages", to_anthropic, "/v1/messages", anthropic_client),
    "Anthropic, blocks": ("anthropic", to_anthropic, "/v1/messages", anthropic_client),
    "OpenAI chat, messages": ("messages", to_openai_chat, "/v1/chat/completions", openai_chat_client),
    "OpenAI responses, messages": ("messages", to_openai_responses, "/v1/responses", openai_responses_client),
    "OpenAI responses, blocks": ("openai", to_openai_responses, "/v1/responses", openai_responses_client),
}
CHECKS = {
    "/v1/messages": check_anthropic,
    "/v1/chat/completions": check_openai_chat,
    "/v1/responses": check_openai_responses,
}


def refusing_counter(to_request, check):
    """A counter that refuses what the provider refuses, as that of Anthropic does."""

    def count(messages):
        check(to_request(messages))
        return count_words(to_request(messages))

    return count


@pytest.mark.parametrize("by_client", [False, True], ids=["urllib", "client"])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.slow
def test_providers_accept_trimmed_histories(server, scorer, provider, by_client):
    style, to_request, path, client = PROVIDERS[provider]
    send = client(server) if by_client else partial(server.post, path)
    count = refusing_counter(to_request, CHECKS[path])
    shorter = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        messages = random_history(rng, style)
        send(to_request(messages))
        budget = rng.randint(1, count(messages))
        kept = trim_messages_by_relevance(
            messages, max_tokens=budget, token_counter=count, keep_last=rng.choice([1, 3, 9]), scorer=scorer
        )
        send(to_request(kept))
        shorter += len(kept) < len(messages)
    assert shorter > HISTORIES / 4


def test_a_counter_that_costs_requests_is_asked_once_a_turn(server, scorer):
    messages = random_history(random.Random(0), "anthropic")
    turns = sum(map(is_question, messages))
    assert turns > 5

    def count(messages):
        return server.post("/v1/messages/count_tokens", to_anthropic(messages))["input_tokens"]

    whole = count(messages)
    for budget, requests in ((whole, 1), (whole - 1, turns + 2)):
        server.requests.clear()
        trim_messages_by_relevance(messages, max_tokens=budget, token_counter=count, keep_last=1, scorer=scorer)
        assert len(server.requests) == requests


@pytest.mark.parametrize("style", STYLES)
def test_promises_hold_for_every_history(scorer, style):
    for seed in range(HISTORIES):
        check_promises(random.Random(seed), scorer, style)


def check_promises(rng, scorer, style):
    messages = random_history(rng, style)
    before = repr(messages)
    kept = trim_messages_by_relevance(
        messages, max_tokens=(budget := rng.randint(1, 400)), token_counter=words_of_all, keep_last=1, scorer=scorer
    )
    assert repr(messages) == before
    places = [next(i for i, message in enumerate(messages) if message is shown) for shown in kept]
    assert places == sorted(set(places))
    last = max(i for i, message in enumerate(messages) if is_question(message))
    always = {i for i, message in enumerate(messages) if is_kept_always(message) or i >= last}
    assert always <= set(places)
    if set(places) != always:
        assert words_of_all(kept) <= budget
    made, answered = pairs(kept)
    assert made == answered


def to_llama_index(message):
    """A message with a tool call in a block, or a plain one."""
    role = {"ai": "assistant", "human": "user"}.get(message.type, message.type)
    calls = [
        ToolCallBlock(tool_call_id=call["id"], tool_name=call["name"], tool_kwargs=call["args"])
        for call in getattr(message, "tool_calls", [])
    ]
    extra = {"tool_call_id": message.tool_call_id} if message.type == "tool" else {}
    return ChatMessage(role=role, blocks=[TextBlock(text=message.text), *calls], additional_kwargs=extra)


def from_llama_index(message):
    calls = [
        {"name": block.tool_name, "args": block.tool_kwargs, "id": block.tool_call_id}
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if message.role == "tool":
        return ToolMessage(message.content, tool_call_id=message.additional_kwargs["tool_call_id"])
    kind = {"assistant": AIMessage, "user": HumanMessage, "system": SystemMessage}[message.role.value]
    return kind(message.content, **({"tool_calls": calls} if calls else {}))


def test_a_memory_of_llama_index_keeps_the_rules_and_its_limit(scorer):
    memory = QRHeadMemory.from_defaults(tokenizer_fn=str.split, scorer=scorer, keep_last=1)
    for seed in range(HISTORIES):
        check_memory(random.Random(seed), memory)


def check_memory(rng, memory):
    history = [to_llama_index(message) for message in random_history(rng, "messages")]
    limit = rng.randint(1, 400)
    kept = [history[why.index] for why in memory._choose(history, None, limit)]
    for check, to_request in ((check_anthropic, to_anthropic), (check_openai_chat, to_openai_chat)):
        check(to_request([from_llama_index(message) for message in kept]))
    last = max(index for index, message in enumerate(history) if message.role == "user")
    always = [message for index, message in enumerate(history) if message.role == "system" or index >= last]
    if kept != always:
        assert sum(map(memory._estimate_token_count, kept)) <= limit


def words_of_all(messages):
    return sum(len(f"{message.content} {getattr(message, 'tool_calls', '')}".split()) for message in messages)


def is_kept_always(message):
    return message.type == "system" or "lc_source" in message.additional_kwargs


def is_question(message):
    return message.type == "human" and str(message.content).startswith("question")


def pairs(messages):
    blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
    made = {call["id"] for message in messages for call in getattr(message, "tool_calls", [])}
    made |= {block["id"] for block in blocks if block["type"] == "tool_use"}
    made |= {block["call_id"] for block in blocks if block["type"] == "function_call"}
    answered = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    answered |= {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
    answered |= {block["call_id"] for block in blocks if block["type"] == "function_call_output"}
    return made, answered


@pytest.mark.parametrize("style", ["messages", "anthropic"])
def test_start_on_human_leaves_out_what_a_provider_refuses_to_begin_with(scorer, style):
    count = refusing_counter(to_anthropic, check_anthropic)
    for seed, budget in product(range(40), (1, 60, 10_000)):
        messages = random_history(random.Random(seed), style, lead_in=True)
        kept = trim_messages_by_relevance(
            messages, max_tokens=budget, token_counter=count, start_on="human", scorer=scorer
        )
        assert next(message for message in kept if message.type != "system").type == "human"
        check_anthropic(to_anthropic(kept))


def test_the_loopback_server_refuses_half_pairs(server):
    question, result = HumanMessage("q"), ToolMessage("r", tool_call_id="t")
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "t"}])
    block = HumanMessage([{"type": "tool_result", "tool_use_id": "t", "content": "r"}])
    for _, to_request, path, _ in (PROVIDERS["Anthropic, messages"], PROVIDERS["OpenAI chat, messages"]):
        assert server.post(path, to_request([question, call, result]))
        for torn in ([question, call], [question, result], [question, call, question, result], []):
            with pytest.raises(RefusedError):
                server.post(path, to_request(torn))
    for torn in (
        [block],
        [call, block],
        [question, call, HumanMessage([{"type": "text", "text": "x"}, *block.content])],
    ):
        with pytest.raises(RefusedError):
            server.post("/v1/messages", to_anthropic(torn))
    for torn in ([{"type": "function_call", "call_id": "t"}], [{"type": "function_call_output", "call_id": "t"}]):
        with pytest.raises(RefusedError):
            server.post("/v1/responses", {"input": torn})
