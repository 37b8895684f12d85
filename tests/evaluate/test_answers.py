"""Answers from the full context, the oracle's and each method's, with a writer whose answers are known."""

import json

import pytest

from qrhead_rag.core.passage import Passage
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.datasets.load import load_examples
from qrhead_rag.evaluate.answers import answer_with_contexts, contains, exact, parse_verdict, summarize
from qrhead_rag.evaluate.methods import by_score
from qrhead_rag.evaluate.writer import Answer, Writer
from tests.helpers.tiny import tiny_model, tiny_tokenizer


class Scripted(Writer):
    """Answers by what stands in the context."""

    def __init__(self, rules):
        self.rules = rules
        self.asked = []

    def answer(self, context, question):
        self.asked.append((context, question))
        return Answer(next(text for clue, text in self.rules if clue in context + question), "long" in context)


QUESTION = LabelledExample(
    id="q",
    query="What is my cat called?",
    answer="Nine",
    documents=tuple(Passage(text=text, title="May") for text in ("long talk", "user: my cat is Nine", "rain")),
    relevant=(1,),
    metadata={"question_date": "2 June"},
)


def last_first(query, documents):
    return by_score(list(range(len(documents))), len(documents))


def test_each_context_holds_its_documents_in_their_own_order():
    writer = Scripted([("Nine", "The cat is called nine."), ("", "Nine.")])
    answers = answer_with_contexts([QUESTION], writer, {"last": last_first}, top_k=2)
    assert [answer.documents for answer in answers] == [(0, 1, 2), (1,), (1, 2)]
    assert [answer.context for answer in answers] == ["full", "oracle", "last"]
    assert writer.asked[2][0] == "[May]\nuser: my cat is Nine\n\n[May]\nrain"
    assert "Today is 2 June." in writer.asked[0][1]
    assert writer.asked[0][1].endswith("Question: What is my cat called?")
    assert [answer.truncated for answer in answers] == [True, False, False]
    assert answers[0].marks == {"exact": 0.0, "contains": 1.0}


def test_a_judge_marks_questions():
    seen = []

    def judge(question, reference, answer):
        seen.append((question, reference, answer))
        return 0.5

    answers = answer_with_contexts([QUESTION], Scripted([("", "Nine.")]), {}, judge=judge)
    assert answers[0].marks == {"exact": 1.0, "contains": 1.0, "judge": 0.5}
    assert seen[0] == ("What is my cat called?", "Nine", "Nine.")
    assert summarize(answers)["oracle"]["judge"].mean == 0.5


def claim(number, true, false):
    return LabelledExample(
        id=f"c{number}",
        query=true,
        answer="true",
        documents=(Passage(text="chapter one"), Passage(text="chapter two")),
        relevant=(0,),
        metadata={"corrupted_facts": false},
    )


def test_claims_are_asked_with_their_corrupted_twins_and_count_as_pairs():
    claims = [claim(1, "Ida sails.", "Ida sinks."), claim(2, "Tom stays.", "Tom leaves.")]
    ranked = []

    def method(query, documents):
        ranked.append(query)
        return last_first(query, documents)

    # right on both of the first pair, fooled by the second's corrupted claim
    rules = [("sails", "TRUE"), ("sinks", "False, she sails."), ("stays", "true"), ("leaves", "TRUE")]
    answers = answer_with_contexts(claims, Scripted(rules), {"last": method}, top_k=1)
    assert ranked == ["Ida sails.", "Ida sinks.", "Tom stays.", "Tom leaves."]
    means = summarize(answers)["last"]
    assert means["true claims"].mean == 1.0
    assert means["false claims"].mean == 0.5
    assert means["correct"].mean == 0.75
    assert means["pairs"].mean == 0.5


@pytest.mark.parametrize(
    ("reference", "answer", "same", "inside"),
    [
        ("Business Administration", "business administration.", 1, 1),
        ("the Long Span", "It is the Long Span, I think", 0, 1),
        ("9", "19", 0, 0),
        ("two cats", "cats", 0, 0),
    ],
)
def test_exact_and_contained(reference, answer, same, inside):
    assert (exact(reference, answer), contains(reference, answer)) == (same, inside)


def test_verdicts():
    assert parse_verdict("The claim is FALSE. It is not true.") == "false"
    assert parse_verdict("**True**") == "true"
    assert parse_verdict("untrue") is None


def test_questions_without_an_answer_are_asked_where_a_judge_marks_them():
    refused = QUESTION.model_copy(update={"id": "q_abs", "relevant": (), "metadata": {"abstention": True}})
    writer = Scripted([("", "Nine.")])
    answers = answer_with_contexts([QUESTION, refused], writer, {})
    assert {answer.id for answer in answers} == {"q"}
    with pytest.raises(ValueError, match="none of the 1 examples can be marked"):
        answer_with_contexts([refused], writer, {})
    answers = answer_with_contexts([QUESTION, refused], writer, {}, judge=lambda *asked: 0.25)
    assert [answer.marks for answer in answers if answer.id == "q_abs"] == [{"judge": 0.25}] * 2
    means = summarize(answers)["full"]
    assert (means["judge"].mean, means["exact"].mean) == (0.25, 1.0)


def test_methods_rank_the_list_in_the_order_asked_for():
    seen = []

    def method(query, documents):
        seen.append([document.text for document in documents])
        return last_first(query, documents)

    answers = answer_with_contexts([QUESTION], Scripted([("", "")]), {"last": method}, top_k=1, order="reversed")
    assert seen == [["rain", "user: my cat is Nine", "long talk"]]
    assert answers[2].documents == (0,)  # the last of the list that was ranked is the first of the conversation


def test_what_cannot_be_scored_is_refused():
    writer = Scripted([("", "")])
    with pytest.raises(ValueError, match=r"\['q'\] have no reference answer"):
        answer_with_contexts([QUESTION.model_copy(update={"answer": None})], writer, {})
    with pytest.raises(ValueError, match="top_k=0"):
        answer_with_contexts([QUESTION], writer, {}, top_k=0)


def test_a_context_that_is_too_long_is_cut_at_its_end():
    tokenizer = tiny_tokenizer()
    seen = []
    writer = Writer(tiny_model(), tokenizer, max_new_tokens=4, context_length=120)
    writer.generate = lambda ids: seen.append(ids) or ids[:2]
    words = " ".join(f"ship{number}" for number in range(200))
    assert writer.answer(words, "Which?").truncated
    prompt = tokenizer.decode(seen[0])
    assert len(seen[0]) <= 120 - 4
    assert "ship0 ship1" in prompt
    assert "ship199" not in prompt
    assert "Which?" in prompt
    assert prompt.startswith("<|im_start|>user")
    assert not writer.answer("a ship", "Which?").truncated


def test_generation_is_greedy_and_stops_at_the_end_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    free = Writer(model, tokenizer, max_new_tokens=5).generate([5, 6, 7])
    ids = [5, 6, 7]
    import torch

    for _ in range(5):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert free == ids[3 : 3 + len(free)]
    model.generation_config.eos_token_id = free[2]
    assert Writer(model, tokenizer, max_new_tokens=5).generate([5, 6, 7]) == free[: free.index(free[2])]


@pytest.mark.embedded
def test_a_whole_small_run_on_the_embedded_model(tmp_path):
    """LongMemEval's format, one question, the real small model."""
    record = {
        "question_id": "m1",
        "question_type": "single-session-user",
        "question": "What is the name of my cat?",
        "answer": "Nine",
        "question_date": "2024/03/01",
        "haystack_dates": ["2024/01/01", "2024/02/01"],
        "haystack_session_ids": ["s1", "s2"],
        "haystack_sessions": [
            [{"role": "user", "content": "I took the bus to the harbour."}],
            [{"role": "user", "content": "The name of my cat is Nine."}],
        ],
        "answer_session_ids": ["s2"],
    }
    path = tmp_path / "lme.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    writer = Writer.from_pretrained(max_new_tokens=12, device="cpu")
    answers = answer_with_contexts(load_examples(path), writer, {"last": last_first}, top_k=1)
    by_context = {answer.context: answer for answer in answers}
    assert by_context["oracle"].marks["contains"] == 1.0
    assert by_context["last"].text == by_context["oracle"].text  # the same document, greedily
    assert not any(answer.truncated for answer in answers)
