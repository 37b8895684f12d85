"""Which messages are kept of a conversation: turns whole, in order, within the budget, the last one always."""

import random
from dataclasses import dataclass

import pytest

from qrhead_rag.frameworks.conversation import Message, choose_messages, split_turns
from qrhead_rag.frameworks.history import TurnRanking


@dataclass(frozen=True)
class Sized(Message):
    tokens: int = 10


def user(text, tokens=10):
    return Sized(text, "user", tokens=tokens)


def reply(text, tokens=10):
    return Sized(text, tokens=tokens)


def choose(messages, query, **options):
    def count(indices):
        return sum(messages[index].tokens for index in indices)

    return [kept.index for kept in choose_messages(messages, query, **{"count_tokens": count, **options})]


def exchanges(*texts):
    return [message for text in texts for message in (user(text), reply(f"about {text}"))]


def ranking(*best):
    """A rank_turns that puts the turns with these words first, the others after them, and notes what it was asked."""

    def rank_turns(query, texts):
        rank_turns.asked.append((query, list(texts)))
        places = [next((n for n, word in enumerate(best) if word in text), 99) for text in texts]
        return TurnRanking(tuple(sorted(range(len(texts)), key=places.__getitem__)))

    rank_turns.asked = []
    return rank_turns


def test_a_turn_runs_from_one_user_message_to_the_next():
    messages = [Sized("be kind", "system"), reply("welcome"), user("one"), reply("1"), reply("more"), user("two")]
    assert split_turns(messages) == [[1], [2, 3, 4], [5]]


def test_a_late_tool_result_joins_the_turns_back_to_its_call():
    messages = [
        user("a"),
        user("look"),
        Message("", calls=("x", "y")),
        Message("x is there", answers=("x",)),
        user("meanwhile"),
        user("still here"),
        Message("y is there", answers=("y",)),
        user("thanks"),
    ]
    assert split_turns(messages) == [[0], [1, 2, 3, 4, 5, 6], [7]]


def test_a_result_without_a_call_stays_where_it_is():
    assert split_turns([user("a"), Message("lost", answers=("nobody",)), user("b")]) == [[0, 1], [2]]


def test_results_of_several_calls_join_the_turns_back_to_the_first():
    messages = [user("a"), Message("", calls=("x",)), user("b"), Message("", calls=("y",)), user("c")]
    assert split_turns([*messages, Message("both", "user", answers=("y", "x")), user("d")]) == [[0, 1, 2, 3, 4, 5], [6]]


def test_nothing_is_ranked_where_everything_fits():
    rank = ranking()
    messages = exchanges("a", "b", "c")
    assert choose(messages, None, max_tokens=60, keep_last=1, rank_turns=rank) == list(range(6))
    assert rank.asked == []


def test_the_whole_is_counted_first_and_then_whole_turns_beside_the_system_messages():
    asked = []

    def count(indices):
        asked.append(list(indices))
        return 100 + sum(messages[index].tokens for index in indices)  # a request costs 100 by itself

    messages = [Sized("rules", "system", tokens=30), *exchanges("a", "b", "c", "question")]
    options = {"count_tokens": count, "keep_last": 1, "rank_turns": ranking("about b")}
    assert choose(messages, None, max_tokens=210, **options) == list(range(9))
    assert asked == [list(range(9))]
    asked.clear()
    assert choose(messages, None, max_tokens=170, **options) == [0, 3, 4, 7, 8]
    assert asked == [list(range(9)), [0, 7, 8], [0, 1, 2], [0, 3, 4], [0, 5, 6], [0, 3, 4, 7, 8]]
    asked.clear()
    assert choose(messages, None, max_tokens=150, **options) == [0, 7, 8]
    assert asked == [list(range(9)), [0, 7, 8]]


def test_turns_that_cost_more_together_than_alone_still_fit():
    def count(indices):
        return 10 * len(indices) ** 2

    messages = exchanges(*"abcdef")
    for budget in range(1, 1440):
        kept = choose(messages, "q", count_tokens=count, max_tokens=budget, keep_last=1, rank_turns=ranking())
        assert count(kept) <= max(budget, count([10, 11]))


def test_what_stands_before_the_first_user_message_may_be_left_out():
    messages = [Sized("rules", "system"), reply("welcome"), *exchanges("a", "b")]
    options = {"max_tokens": 900, "keep_last": 1, "rank_turns": ranking(), "start_on_user": True}
    assert choose(messages, None, **options) == [0, 2, 3, 4, 5]
    assert choose(messages[:2], None, **options) == [0, 1], "it is all there is"


def test_what_matters_is_kept_in_its_original_order():
    rank = ranking("late topic", "early topic")
    messages = exchanges("early topic", "weather", "late topic", "sport", "question")
    kept = choose(messages, "what?", max_tokens=60, keep_last=1, rank_turns=rank)
    assert kept == [0, 1, 4, 5, 8, 9]
    texts = [f"{text}\nabout {text}" for text in ("early topic", "weather", "late topic", "sport")]
    assert rank.asked == [("what?", texts)]


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_without_a_query_the_last_user_message_with_text_is_the_query(query):
    rank = ranking("a")
    messages = [*exchanges("a", "b", "c"), user("which?"), reply("hm"), user("")]
    choose(messages, query, max_tokens=45, keep_last=1, rank_turns=rank)
    assert [asked for asked, _ in rank.asked] == ["which?"]


def test_without_any_user_text_the_most_recent_turns_are_kept():
    rank = ranking()
    messages = [message for _ in range(5) for message in (user(""), reply("picture"))]
    assert choose(messages, None, max_tokens=50, keep_last=1, rank_turns=rank) == [6, 7, 8, 9]
    assert rank.asked == []


def test_recent_messages_come_before_relevant_ones_and_bring_their_turns():
    messages = exchanges("old gold", "b", "c", "d")
    expected = {2: [0, 1, 2, 3, 6, 7], 3: [0, 1, 4, 5, 6, 7], 6: [2, 3, 4, 5, 6, 7]}
    for keep_last, kept in expected.items():
        chosen = choose(messages, "q", max_tokens=60, keep_last=keep_last, rank_turns=ranking("gold"))
        assert chosen == kept


def test_a_relevant_turn_that_does_not_fit_is_skipped_and_smaller_ones_follow():
    messages = [user("gold", 500), reply("much", 10), *exchanges("silver", "iron", "question")]
    kept = choose(messages, "q", max_tokens=45, keep_last=1, rank_turns=ranking("gold", "silver"))
    assert kept == [2, 3, 6, 7]


def test_system_messages_and_the_last_turn_stay_even_over_the_budget():
    messages = [Sized("rules", "system", tokens=30), *exchanges("a", "b"), user("long", 400), reply("longer", 400)]
    rank = ranking()
    assert choose(messages, "q", max_tokens=100, keep_last=4, rank_turns=rank) == [0, 5, 6]
    assert rank.asked == []


def test_a_conversation_of_system_messages_alone_stays():
    messages = [Sized("rules", "system", tokens=30)] * 2
    assert choose(messages, None, max_tokens=5, keep_last=1, rank_turns=ranking()) == [0, 1]
    assert choose([], None, max_tokens=5, keep_last=1, rank_turns=ranking()) == []


def test_what_is_ranked_stays_the_same_while_the_last_turn_grows():
    rank = ranking("b")
    messages = exchanges("a", "b", "c", "question")
    for steps in range(3):
        grown = messages + [reply("tool says", 3)] * steps
        choose(grown, None, max_tokens=60, keep_last=2, rank_turns=rank)
    assert len(rank.asked) == 3
    assert rank.asked[0] == rank.asked[1] == rank.asked[2]


def random_conversation(rng):
    """User messages, replies, and tool calls whose results come at once, late, in another order, or never."""
    messages, open_calls = [], []
    for number in range(rng.randint(1, 40)):
        roll = rng.random()
        tokens = rng.choice([0, 1, 5, 20, 80])
        if roll < 0.1:
            messages.append(Sized("rules", "system", tokens=tokens))
        elif roll < 0.4:
            messages.append(user(rng.choice(["", f"question {number}"]), tokens))
        elif roll < 0.6:
            calls = tuple(f"{number}.{k}" for k in range(rng.randint(1, 3)))
            open_calls += calls
            messages.append(Sized("", calls=calls, tokens=tokens))
        elif roll < 0.85 and open_calls:
            answers = tuple(
                open_calls.pop(rng.randrange(len(open_calls))) for _ in range(rng.randint(1, min(2, len(open_calls))))
            )
            role = rng.choice(["other", "other", "user"])
            messages.append(Sized(f"result {answers}", role, answers=answers, tokens=tokens))
        else:
            messages.append(reply(f"reply {number}", tokens))
    return messages


@pytest.mark.parametrize("seed", range(300))
def test_every_conversation_keeps_its_promises(seed):
    rng = random.Random(seed)
    messages = random_conversation(rng)
    budget, keep_last = rng.choice([1, 30, 100, 300]), rng.choice([1, 2, 5])

    def rank_turns(query, texts):
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        return TurnRanking(tuple(order))

    before = list(messages)
    kept = choose(messages, rng.choice([None, "q"]), max_tokens=budget, keep_last=keep_last, rank_turns=rank_turns)
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
    assert all(set(messages[i].answers) <= calls for i in kept), "a result without its call"
