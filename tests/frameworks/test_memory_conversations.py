"""Ten written conversations of 200 turns: what an early turn said is still there when it is asked for.

A turn is here as everywhere a user message with its answer. The ten conversations share the talk of other things that
comes between, and the retriever that reads them.
"""

import json
from itertools import cycle, islice
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_qrhead import trim_messages_by_relevance
from llama_index.core.base.llms.types import ChatMessage
from llama_index.postprocessor.qrhead import QRHeadMemory

from qrhead_rag.frameworks.history import HistoryScorerOptions

TURNS, BUDGET, KEPT_OF_TEN = 200, 1000, 9
DATA = json.loads((Path(__file__).parents[1] / "data" / "conversations.json").read_text(encoding="utf-8"))
CASES = DATA["cases"]


def turns_of(case):
    """The early turns of a case, then other topics; the question is the last turn."""
    early = case["early_turns"]
    return [*early, *islice(cycle(DATA["filler_topics"]), TURNS - 1 - len(early))]


@pytest.fixture(scope="module")
def scorer():
    return HistoryScorerOptions(device="cpu").load_scorer()


def test_the_cases_are_what_they_claim():
    assert len(CASES) == 10
    for case in CASES:
        assert len(turns_of(case)) == TURNS - 1
        question, answer = turns_of(case)[case["answer_turn"]]
        assert case["question"] not in (question, answer)


@pytest.mark.embedded
def test_trimming_by_relevance_keeps_what_trimming_to_the_last_turns_loses(scorer):
    kept_by_relevance, kept_by_recency, lost = 0, 0, []
    for case in CASES:
        messages = [m for asked, told in turns_of(case) for m in (HumanMessage(asked), AIMessage(told))]
        messages.append(HumanMessage(case["question"]))
        wanted = messages[2 * case["answer_turn"] : 2 * case["answer_turn"] + 2]
        options = {"max_tokens": BUDGET, "token_counter": "approximate"}
        recent = trim_messages(messages, start_on="human", **options)
        kept_by_recency += any(message is wanted[0] for message in recent)
        kept = trim_messages_by_relevance(messages, scorer=scorer, **options)
        assert count_tokens_approximately(kept) <= BUDGET
        kept_answer = [message for message in kept if any(message is other for other in wanted)]
        assert kept_answer in ([], wanted)
        kept_by_relevance += bool(kept_answer)
        lost += [] if kept_answer else [case["name"]]
    assert kept_by_recency == 0
    assert kept_by_relevance >= KEPT_OF_TEN, f"lost in {lost}"


@pytest.mark.embedded
async def test_a_memory_keeps_it_too(scorer):
    kept_of = {}

    def tokens(text):
        return [0] * scorer.count_tokens(text)

    for case in CASES:
        memory = QRHeadMemory.from_defaults(scorer=scorer, token_limit=BUDGET, tokenizer_fn=tokens)
        pairs = turns_of(case)
        history = [
            ChatMessage(role=r, content=t) for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)
        ]
        await memory.aput_messages([*history, ChatMessage(role="user", content=case["question"])])
        texts = [message.content for message in await memory.aget()]
        assert sum(len(tokens(text)) for text in texts) <= BUDGET
        kept_of[case["name"]] = pairs[case["answer_turn"]][0] in texts
        assert len(await memory.aget_all(None)) == 2 * TURNS - 1
        await memory.sql_store._async_engine.dispose()
    assert sum(kept_of.values()) >= KEPT_OF_TEN, kept_of
