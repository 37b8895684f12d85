"""Which messages are kept of a conversation: turns whole, in order, within the budget, the last one always."""

import random

import pytest

from qrhead_rag.frameworks.conversation import Message, choose_messages, split_turns


def user(text, tokens=10):
    return Message(text, tokens, "user")


def reply(text, tokens=10):
    return Message(text, tokens)


def exchanges(*texts):
    return [message for text in texts for message in (user(text), reply(f"about {text}"))]


def ranking(*best):
    """A rank_turns that puts the turns with these words first, the others after them, and notes what it was asked."""

    def rank_turns(query, texts):
        rank_turns.asked.append((query, list(texts)))
        return sorted(range(len(texts)), key=lambda i: next((n for n, word in enumerate(best) if word in texts[i]), 99))

    rank_turns.asked = []
    return rank_turns


def test_a_turn_runs_from_one_user_message_to_the_next():
    messages = [Message("be kind", 3, "system"), reply("welcome"), user("one"), reply("1"), reply("more"), user("two")]
    assert split_turns(messages) == [[1], [2, 3, 4], [5]]


def test_a_late_tool_result_joins_the_turns_back_to_its_call():
    messages = [
        user("a"),
        user("look"),
        Message("", 5, calls=("x", "y")),
        Message("found x", 5, answers="x"),
        user("meanwhile"),
        user("still here"),
        Message("found y", 5, answers="y"),
        user("thanks"),
    ]
    assert split_turns(messages) == [[0], [1, 2, 3, 4, 5, 6], [7]]


def test_a_result_without_a_call_stays_where_it_is():
    assert split_turns([user("a"), Message("lost", 5, answers="nobody"), user("b")]) == [[0, 1], [2]]


def test_nothing_is_ranked_where_everything_fits():
    rank = ranking()
    messages = exchanges("a", "b", "c")
    assert choose_messages(messages, None, max_tokens=60, keep_last=1, rank_turns=rank) == list(range(6))
    assert rank.asked == []


def test_what_matters_is_kept_in_its_original_order():
    rank = ranking("late topic", "early topic")
    messages = exchanges("early topic", "weather", "late topic", "sport", "question")
    kept = choose_messages(messages, "what?", max_tokens=60, keep_last=1, rank_turns=rank)
    assert kept == [0, 1, 4, 5, 8, 9]
    texts = [f"{text}\nabout {text}" for text in ("early topic", "weather", "late topic", "sport")]
    assert rank.asked == [("what?", texts)]


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_without_a_query_the_last_user_message_with_text_is_the_query(query):
    rank = ranking("a")
    messages = [*exchanges("a", "b", "c"), user("which?"), reply("hm"), user("")]
    choose_messages(messages, query, max_tokens=45, keep_last=1, rank_turns=rank)
    assert [asked for asked, _ in rank.asked] == ["which?"]


def test_without_any_user_text_the_most_recent_turns_are_kept():
    rank = ranking()
    messages = [message for _ in range(5) for message in (user(""), reply("picture"))]
    assert choose_messages(messages, None, max_tokens=50, keep_last=1, rank_turns=rank) == [6, 7, 8, 9]
    assert rank.asked == []


def test_recent_messages_come_before_relevant_ones_and_bring_their_turns():
    messages = exchanges("old gold", "b", "c", "d")
    expected = {2: [0, 1, 2, 3, 6, 7], 3: [0, 1, 4, 5, 6, 7], 6: [2, 3, 4, 5, 6, 7]}
    for keep_last, kept in expected.items():
        chosen = choose_messages(messages, "q", max_tokens=60, keep_last=keep_last, rank_turns=ranking("gold"))
        assert chosen == kept


def test_a_relevant_turn_that_does_not_fit_is_skipped_and_smaller_ones_follow():
    messages = [user("gold", 500), reply("much", 10), *exchanges("silver", "iron", "question")]
    kept = choose_messages(messages, "q", max_tokens=45, keep_last=1, rank_turns=ranking("gold", "silver"))
    assert kept == [2, 3, 6, 7]


def test_system_messages_and_the_last_turn_stay_even_over_the_budget():
    messages = [Message("rules", 30, "system"), *exchanges("a", "b"), user("long", 400), reply("longer", 400)]
    rank = ranking()
    assert choose_messages(messages, "q", max_tokens=100, keep_last=4, rank_turns=rank) == [0, 5, 6]
    assert rank.asked == []


def test_a_conversation_of_system_messages_alone_stays():
    messages = [Message("rules", 30, "system")] * 2
    assert choose_messages(messages, None, max_tokens=5, keep_last=1, rank_turns=ranking()) == [0, 1]
    assert choose_messages([], None, max_tokens=5, keep_last=1, rank_turns=ranking()) == []


def test_what_is_ranked_stays_the_same_while_the_last_turn_grows():
    rank = ranking("b")
    messages = exchanges("a", "b", "c", "question")
    for steps in range(3):
        grown = messages + [Message("tool says", 3)] * steps
        choose_messages(grown, None, max_tokens=60, keep_last=2, rank_turns=rank)
    assert len(rank.asked) == 3
    assert rank.asked[0] == rank.asked[1] == rank.asked[2]


def random_conversation(rng):
    """User messages, replies, and tool calls whose results come at once, late, in another order, or never."""
    messages, open_calls = [], []
    for number in range(rng.randint(1, 40)):
        roll = rng.random()
        tokens = rng.choice([0, 1, 5, 20, 80])
        if roll < 0.1:
            messages.append(Message("rules", tokens, "system"))
        elif roll < 0.4:
            messages.append(Message(rng.choice(["", f"question {number}"]), tokens, "user"))
        elif roll < 0.6:
            calls = tuple(f"{number}.{k}" for k in range(rng.randint(1, 3)))
            open_calls += calls
            messages.append(Message("", tokens, calls=calls))
        elif roll < 0.85 and open_calls:
            call = open_calls.pop(rng.randrange(len(open_calls)))
            messages.append(Message(f"result {call}", tokens, answers=call))
        else:
            messages.append(Message(f"reply {number}", tokens))
    return messages


@pytest.mark.parametrize("seed", range(300))
def test_every_conversation_keeps_its_promises(seed):
    rng = random.Random(seed)
    messages = random_conversation(rng)
    budget, keep_last = rng.choice([1, 30, 100, 300]), rng.choice([1, 2, 5])

    def rank_turns(query, texts):
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        return order

    before = list(messages)
    kept = choose_messages(
        messages, rng.choice([None, "q"]), max_tokens=budget, keep_last=keep_last, rank_turns=rank_turns
    )
    assert messages == before
    assert kept == sorted(set(kept))
    kept_indices = set(kept)
    turns = split_turns(messages)
    assert all(kept_indices.issuperset(turn) or kept_indices.isdisjoint(turn) for turn in turns), "a turn was torn"
    always = {i for i, message in enumerate(messages) if message.role == "system"} | set(turns[-1] if turns else [])
    assert always <= kept_indices
    if kept_indices != always:
        assert sum(messages[i].tokens for i in kept_indices) <= budget
    calls = {call for i in kept for call in messages[i].calls}
    assert all(messages[i].answers in calls for i in kept if messages[i].answers), "a result without its call"
