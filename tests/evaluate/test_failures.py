"""Lists that a method fails on, or scores 0 throughout: named and counted, while the run goes on."""

import json
import sys

import pytest
from typer.testing import CliRunner

from qrhead_rag import Passage
from qrhead_rag.cli import app
from qrhead_rag.datasets.examples import LabelledExample
from qrhead_rag.evaluate.answers import answer_with_contexts
from qrhead_rag.evaluate.evaluation import evaluate
from qrhead_rag.evaluate.methods import Ranked, by_score, make_method, make_methods
from qrhead_rag.evaluate.writer import Answer

BOATS = LabelledExample(
    id="boats",
    query="red boat",
    documents=(Passage(text="snow"), Passage(text="a red boat")),
    relevant=(1,),
    answer="x",
)
DIGITS = BOATS.model_copy(
    update={"id": "digits", "query": "which", "documents": (Passage(text="7"), Passage(text="9"))}
)


def fails_on_digits(query, documents):
    if documents[0].text in "79":
        raise LookupError("no words")
    return by_score([len(document.text) for document in documents], len(documents))


def test_a_list_that_a_method_fails_on_counts_0_and_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"mine failed on 1 of 3 lists.*'digits' \(LookupError: no words\)$") as caught:
        evaluation = evaluate([DIGITS, BOATS, BOATS], {"mine": fails_on_digits}, metrics=["RR", "nDCG@10"])
    assert [warning.filename for warning in caught] == [__file__]
    assert evaluation.values("mine", "RR") == [0.0, 1.0, 1.0]
    assert evaluation.summaries()[0].num_failed == 1
    assert json.loads(evaluation.to_json())["methods"][0]["num_failed"] == 1
    evaluation.write_jsonl(tmp_path / "queries.jsonl")
    first, second, _ = map(json.loads, (tmp_path / "queries.jsonl").read_text().splitlines())
    assert (first["ranking"], first["scores"], first["error"]) == ([], [], "LookupError: no words")
    assert second["error"] is None


def test_what_fails_on_every_list_is_raised_as_it_is():
    with pytest.raises(LookupError, match="no words") as caught:
        evaluate([DIGITS, DIGITS], {"mine": fails_on_digits})
    assert caught.traceback[-1].name == "fails_on_digits"


def test_a_failed_list_leaves_the_model_to_answer_without_a_document():
    class Echo:
        def answer(self, context, question):
            return Answer(context, truncated=False)

    with pytest.warns(UserWarning, match=r"mine failed on 1 of 2 lists.*'digits'"):
        answers = answer_with_contexts([BOATS, DIGITS], Echo(), {"mine": fails_on_digits}, top_k=1)
    assert [answer.text for answer in answers if answer.context == "mine"] == ["a red boat", ""]


def test_lists_that_a_first_stage_scores_0_throughout_are_counted():
    with pytest.warns(
        UserWarning, match=r"bm25: every first-stage score is 0 in 1 of 2 lists \(the first: 'digits'\)"
    ) as caught:
        evaluation = evaluate([BOATS, DIGITS], {"bm25": make_method("bm25")}, metrics=["RR"])
    assert [warning.filename for warning in caught] == [__file__]
    assert evaluation.values("bm25", "RR") == [1.0, 0.5]


def test_a_first_stage_that_scores_0_throughout_leaves_the_order_of_the_heads(monkeypatch, tmp_path):
    (tmp_path / "my_heads.py").write_text("last = lambda query, texts: list(range(len(texts)))\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_heads:last+9*bm25"
    methods = make_methods([name])
    assert methods[name]("which", DIGITS.documents) == Ranked([1, 0], [0.0, 1.0], unscored=True)
    assert methods[name]("snow", BOATS.documents).order == [0, 1]
    with pytest.warns(UserWarning, match=r"9\*bm25: every first-stage score is 0 in 1 of 2 lists"):
        evaluate([BOATS, DIGITS], methods, metrics=["RR"])


def test_the_command_says_which_lists_were_not_ranked(tmp_path, monkeypatch):
    (tmp_path / "my_lists.py").write_text("longest = lambda query, texts: [1 / (len(text) - 1) for text in texts]\n")
    data = tmp_path / "data.jsonl"
    data.write_text(f"{BOATS.model_dump_json()}\n{DIGITS.model_dump_json()}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(app, ["evaluate", str(data), "--methods", "my_lists:longest,bm25", "--metrics", "RR"])
    assert done.exit_code == 0, done.output
    assert "Lists that were not ranked, and count 0: 1 of my_lists:longest." in " ".join(done.output.split())
    assert "my_lists:longest failed on 1 of 2 lists" in done.stderr
    assert "bm25: every first-stage score is 0 in 1 of 2 lists" in done.stderr
