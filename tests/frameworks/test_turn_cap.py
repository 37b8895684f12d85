"""A turn over the cap is cut by its longest texts; calls keep their results, and the budget holds."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrhead_rag.core.pruning import ReadText
from qrhead_rag.core.reading import Evidence
from qrhead_rag.frameworks.conversation import Message, TurnCap, choose_messages
from qrhead_rag.frameworks.cutting import SIGN, keep_ends, shorten_texts
from qrhead_rag.frameworks.history import TurnRanking, rank_history
from tests.helpers.overlap import WordOverlap

FILLER = "The harbour was quiet and nothing was written down. "
RESULT = FILLER * 40 + "The ferry leaves at nine. " + FILLER * 40


def message(text, role="other", **ids):
    return Message(text, role, parts=(text,), **ids)


def user(text):
    return message(text, "user")


def words(texts):
    return sum(len(text.split()) for text in texts)


def choose(messages, query=None, *, max_tokens, cap, keep_last=1, rank_turns=None, request=0):
    """The kept messages and their texts; tokens are words, and a request costs some by itself."""

    def count(indices, texts):
        return request + sum(words(texts.get(index, messages[index].parts)) for index in indices)

    kept = choose_messages(
        messages,
        query,
        count_tokens=lambda indices: count(indices, {}),
        max_tokens=max_tokens,
        keep_last=keep_last,
        rank_turns=rank_turns or by_word("ferry"),
        cap=cap and TurnCap(cap, count, lambda index: words(messages[index].parts)),
    )
    return kept, [why.parts or messages[why.index].parts for why in kept]


def by_word(word):
    """A rank_turns whose evidence stands on one word."""

    def rank(query, texts):
        evidence = [_evidence(text, word) for text in texts]
        scores = tuple(float(read.contributions.sum()) for read in evidence)
        return TurnRanking(tuple(sorted(range(len(texts)), key=lambda index: -scores[index])), scores, tuple(evidence))

    return rank


def _evidence(text, word):
    """A token for each word."""
    offsets, begin = [], 0
    for token in text.split():
        begin = text.index(token, begin)
        offsets.append((begin, begin + len(token)))
        begin += len(token)
    shares = [float(word in text[begin:end]) for begin, end in offsets]
    return Evidence(torch.tensor(shares), torch.tensor(offsets).reshape(-1, 2), label="")


def tool_turn(question, result, call="a", answer="So it is."):
    return [user(question), Message("", calls=(call,)), message(result, answers=(call,)), message(answer)]


@pytest.mark.parametrize("cap", [None, 10_000])
def test_what_is_under_the_cap_is_chosen_as_without(cap):
    messages = [*tool_turn("When?", RESULT), *tool_turn("And?", "nothing", "b"), user("The ferry?")]
    whole, _ = choose(messages, max_tokens=2000, cap=cap)
    assert [(why.kind, why.parts) for why in whole] == [("fits", None)] * 9
    few, _ = choose(messages, max_tokens=20, cap=None)
    assert [why.index for why in few] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("request_cost", [0, 500])
def test_a_long_result_of_an_older_turn_is_cut_to_what_was_asked(request_cost):
    messages = [
        *tool_turn("Look it up", RESULT),
        *tool_turn("And bread?", "Bread is baked at dawn.", "b"),
        user("When?"),
    ]
    before = copy.deepcopy(messages)
    kept, texts = choose(messages, max_tokens=100 + request_cost, cap=40, request=request_cost)
    assert messages == before
    cut = {why.index: text for why, text in zip(kept, texts, strict=True) if why.parts}
    assert list(cut) == [2]
    assert "The ferry leaves at nine." in cut[2][0]
    assert cut[2][0].endswith(SIGN)
    assert 20 < words(text for index in range(4) for text in cut.get(index, messages[index].parts)) <= 40
    assert [why.index for why in kept] == list(range(9))


def test_a_long_result_of_the_running_turn_is_cut_and_the_question_never_is():
    question = "When does the ferry leave, " + "please, " * 20
    messages = [*tool_turn("And bread?", "Bread.", "b"), *tool_turn(question, RESULT)[:3]]
    kept, texts = choose(messages, max_tokens=200, cap=60)
    assert [why.index for why in kept if why.parts] == [6]
    assert "The ferry leaves at nine." in texts[-1][0]
    assert words(text for parts in texts[4:] for text in parts) <= 60
    assert kept[-1].reason == "everything fits, cut"


def test_the_budget_caps_the_running_turn_too():
    messages = [user("The ferry?"), Message("", calls=("a",)), message(RESULT, answers=("a",))]
    _, texts = choose(messages, max_tokens=50, cap=400)
    assert 25 < words(text for parts in texts for text in parts) <= 50


def test_a_question_over_the_cap_leaves_its_results_a_quarter_of_it():
    question = "ferry " * 300
    messages = [user(question), Message("", calls=("a",)), message(RESULT, answers=("a",))]
    _, texts = choose(messages, max_tokens=1000, cap=100)
    assert texts[0] == (question,)
    assert 5 < words(texts[2]) <= 26
    assert "The ferry leaves at nine." in texts[2][0]


def test_without_a_query_the_beginning_and_the_end_stay():
    result = "It begins here. " + FILLER * 40 + "It ends there."
    messages = [Message("", calls=("a",)), message(result, answers=("a",))]
    kept, texts = choose(messages, max_tokens=30, cap=30)
    assert kept[1].parts is not None
    assert texts[1][0].startswith("It begins here.")
    assert texts[1][0].endswith("It ends there.")
    assert SIGN in texts[1][0]


def test_an_older_turn_that_cannot_be_cut_is_left_out():
    picture = Message("ferry " * 300, "user")  # has no part that may be cut

    def count(indices, texts):
        return sum(len(messages[index].text.split()) for index in indices)

    messages = [picture, message("bread"), user("ferry?")]
    kept = choose_messages(
        messages,
        None,
        count_tokens=lambda indices: count(indices, {}),
        max_tokens=500,
        keep_last=1,
        rank_turns=by_word("ferry"),
        cap=TurnCap(50, count, lambda index: len(messages[index].text.split())),
    )
    assert [why.index for why in kept] == [2]


@pytest.mark.parametrize("text", ["x" * 200_000, "wind " * 40_000, "\n" * 5 + "0,1;" * 50_000, "渡轮九点开" * 40_000])
@pytest.mark.parametrize("read", [False, True])
def test_200000_characters_without_a_stop_are_cut(text, read):
    ends = tuple(range(0, len(text), 100)) if read else ()
    texts = [ReadText("When?", (), ()), ReadText(text, ends, (0.01,) * len(ends))]
    asked = []

    def count(texts):
        asked.append(texts)
        return sum(map(len, texts)) // 4

    short = shorten_texts(texts, 500, count, len(text) // 4)
    assert short[0] == "When?"
    assert 250 < count(short) <= 500
    assert SIGN in short[1]
    assert len(asked) < 15, "a count may be a request"


def test_the_model_reads_200000_characters_once():
    scorer = WordOverlap.of(__file__)  # a word is a token, so this is a list of one token
    noise = "noise" * 40_000
    messages = [user("when does the ferry leave ?"), Message("", calls=("a",)), message(noise, answers=("a",))]

    def rank(query, texts):
        return rank_history(scorer, query, texts, evidence=True)

    _, texts = choose(messages, max_tokens=200, cap=100, rank_turns=rank)
    read = len(scorer.read)
    assert words(text for parts in texts for text in parts) <= 100
    assert choose(messages, max_tokens=200, cap=100, rank_turns=rank)[1] == texts
    assert len(scorer.read) == read


def test_evidence_is_kept_only_where_it_is_asked_for():
    scorer = WordOverlap.of(__file__)
    texts = ["the ferry leaves at nine .", "bread is baked at dawn ."]
    plain, read = rank_history(scorer, "ferry ?", texts), rank_history(scorer, "ferry ?", texts, evidence=True)
    assert plain.order == read.order
    assert plain.evidence == ()
    of_ferry = read.read(0, texts[0])
    assert of_ferry.text == texts[0]
    assert 0.1 < sum(of_ferry.contributions) < read.scores[0] + 1e-3
    assert rank_history(scorer, "ferry ?", texts) is read


def test_every_message_says_why(caplog):
    messages = [
        Message("be kind", "system", parts=("be kind",)),
        *tool_turn("The ferry", "The ferry leaves at nine.", "a"),
        *tool_turn("The soup", "no " * 30, "b"),
        *tool_turn("The bread", "Bread is baked at dawn.", "c"),
        user("ferry?"),
    ]
    with caplog.at_level(logging.DEBUG, logger="qrhead_rag"):
        kept, _ = choose(messages, max_tokens=31, cap=None, keep_last=2)
    assert [(why.index, why.kind) for why in kept] == [
        (0, "system"),
        (1, "relevant"),
        (2, "relevant"),
        (3, "pair"),
        (4, "relevant"),
        (9, "recent"),
        (10, "recent"),
        (11, "pair"),
        (12, "recent"),
        (13, "last turn"),
    ]
    assert kept[1].reason == "relevant, evidence 2.000"
    assert kept[3].reason == "result of a kept call, evidence 2.000"
    assert [why.evidence for why in (kept[0], kept[-1])] == [None, None]
    assert [record.name for record in caplog.records] == ["qrhead_rag.frameworks.conversation"] * 10
    assert "message 3 of 14 is kept: result of a kept call" in caplog.text
    assert "nine" not in caplog.text, "logs have no text of a conversation"


def test_ends_are_cut_at_sentences_then_words():
    assert keep_ends("one two three four five six", 21) == "one two […] five six"
    assert keep_ends("x" * 50, 15) == "xxxxx […] xxxxx"
    assert keep_ends("x" * 50, 4) == SIGN
    assert keep_ends("short", 5) == "short"


SENTENCES = ["The ferry leaves at nine.", "Bread is baked.", "x" * 60, "\n", " ", "渡轮九点开。", "Is it? It is!", "a"]


@st.composite
def conversations(draw):
    messages, calls = [], 0
    if draw(st.booleans()):
        messages.append(message("be kind", "system"))
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 5)):
            messages.append(user(draw(st.text("ferry? ", max_size=20))))
        made = draw(st.integers(0, 3))
        ids = tuple(f"call {calls + number}" for number in range(made))
        calls += made
        if ids:
            messages.append(message("", calls=ids))
        for call in ids:
            result = " ".join(draw(st.lists(st.sampled_from(SENTENCES), max_size=30)))
            messages.append(message(result, answers=(call,)))
        messages.append(message(" ".join(draw(st.lists(st.sampled_from(SENTENCES), max_size=8)))))
    return messages


@settings(max_examples=60, deadline=None)
@given(conversations(), st.integers(1, 120), st.integers(1, 60), st.integers(1, 4), st.sampled_from([None, "ferry?"]))
def test_every_conversation_keeps_its_promises(messages, max_tokens, cap, keep_last, query):
    before = copy.deepcopy(messages)
    kept, texts = choose(messages, query, max_tokens=max_tokens, cap=cap, keep_last=keep_last)
    assert messages == before
    indices = [why.index for why in kept]
    assert indices == sorted(set(indices)), "in order, nothing twice"
    calls = {call for index in indices for call in messages[index].calls}
    answers = {call for index in indices for call in messages[index].answers}
    assert calls == answers
    assert all(len(parts) == len(messages[index].parts) for index, parts in zip(indices, texts, strict=True))
    last_user = max((index for index, m in enumerate(messages) if m.role == "user"), default=None)
    assert [why for why in kept if why.parts is not None and (why.index == last_user or why.kind == "system")] == []
    for why, parts in zip(kept, texts, strict=True):
        if why.parts is not None:
            assert parts != messages[why.index].parts
            own = [text.split() for text in messages[why.index].parts]
            assert any(SIGN in text for text in parts) or [text.split() for text in parts] == own
            assert all(text.strip() for text, own in zip(parts, messages[why.index].parts, strict=True) if own.strip())
    fixed = 0 if last_user is None else words(messages[last_user].parts)
    system = words(messages[0].parts) if messages[0].role == "system" else 0
    least = fixed + system + len(messages)  # every message but the question may be cut to a sign
    if least <= min(max_tokens, cap):
        assert words(text for parts in texts for text in parts) <= max_tokens
