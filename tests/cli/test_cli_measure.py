"""`qrhead detect` and `qrhead evaluate`, end to end on a tiny model and on bad input."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

import qrhead_rag.detect.copying
from qrhead_rag import HeadSet, QRRetriever
from qrhead_rag.cli import app
from qrhead_rag.cli.options import ModelOptions
from qrhead_rag.evaluate.writer import Writer
from tests.detect.test_detection import COPIES, FINDS, NEEDLE, hand_made, labelled
from tests.helpers.synonyms import KNOWING, synonym_corpus, synonym_model

run = CliRunner().invoke


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "marks.jsonl"
    path.write_text("".join(labelled(number).model_dump_json() + "\n" for number in range(10)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def tiny_load(monkeypatch):
    """The hand-made model in place of any other; a list of what was asked for."""
    asked = []

    def load(self, heads, mode, **options):
        asked.append((self.model, heads, mode, options))
        made, tokenizer = hand_made()
        return QRRetriever(made, tokenizer, heads=heads, mode=mode, model_name="hand-made", **options)

    def load_writer(self, **options):
        asked.append((self.model, "writer"))
        return Writer(*hand_made(), **{"max_new_tokens": 2, **options})

    monkeypatch.setattr(ModelOptions, "load", load)
    monkeypatch.setattr(ModelOptions, "load_writer", load_writer)
    return asked


def words(output):
    """What was printed, without the line breaks of a narrow terminal."""
    return " ".join(output.split())


@pytest.mark.slow
def test_detect_writes_heads_and_report_and_resumes(data, tmp_path, monkeypatch):
    command = ["detect", str(data), "--out", str(tmp_path / "heads.json"), "--report", str(tmp_path / "report")]
    command += ["--scores", str(tmp_path / "scores"), "--name", "marks", "--num-heads", "1"]
    done = run(app, command)
    assert done.exit_code == 0, done.output
    heads = HeadSet.load(tmp_path / "heads.json")
    assert (heads.heads, heads.name, heads.task, heads.num_examples) == ((FINDS,), "marks", "marks", 10)
    assert "1-2" in done.output
    assert "marks: 10 examples of 6 documents\n" in done.output
    assert "contrastive (1) 1.000" in words(done.output)
    assert "+0.000 over all heads (p = 1.0000)" in words(done.output)  # all heads find these too
    assert "By number of heads: 1:1.000" in words(done.output)
    assert re.search(r"By deepest layer: 0:0\.\d{3} 1:1\.000 ", words(done.output))  # and 2 as 1
    report = json.loads((tmp_path / "report" / "detection.json").read_text())
    assert report["chosen"][0]["layer"] == FINDS[0]
    assert (tmp_path / "report" / "curves.png").exists()
    monkeypatch.setattr(QRRetriever, "head_scores", None)  # nothing is run again
    again = run(app, [*command, "--criterion", "mass"])
    assert again.exit_code == 0, again.output
    assert HeadSet.load(tmp_path / "heads.json").criterion == "mass"


def test_an_interrupted_detection_is_resumed(data, tmp_path, monkeypatch):
    run_one, done = QRRetriever.head_scores, []

    def interrupted(self, query, documents):
        done.append(query)
        if len(done) == 4:
            raise KeyboardInterrupt
        return run_one(self, query, documents)

    monkeypatch.setattr(QRRetriever, "head_scores", interrupted)
    command = ["detect", str(data), "--scores", str(tmp_path / "s"), "--out", str(tmp_path / "h.json")]
    stopped = run(app, command)
    assert stopped.exit_code == 130
    assert "run the same command again to resume" in stopped.stderr
    assert not (tmp_path / "h.json").exists()
    assert run(app, command).exit_code == 0
    assert len(done) == 4 + 7  # of ten examples three were there


@pytest.mark.slow
def test_detect_on_two_data_sets_of_parts(data, tmp_path, tiny_load):
    other = tmp_path / "others.jsonl"
    other.write_text(data.read_text())
    command = ["detect", str(data), str(other), "--part", "2/2", "--examples", "3", "--mode", "late"]
    command += ["--out", str(tmp_path / "h.json"), "--scores", str(tmp_path / "s"), "--report", str(tmp_path / "r")]
    done = run(app, command)
    assert done.exit_code == 0, done.output
    assert tiny_load[0][1:3] == ("all", "late")
    report = json.loads((tmp_path / "r" / "detection.json").read_text())
    used = {listed["name"]: listed["ids"] for listed in report["data"]}
    assert set(used) == {"marks", "others"}
    assert used["marks"] == used["others"]
    assert all(int(name[1:]) % 2 == 1 for name in used["marks"])
    assert len(used["marks"]) == 3
    assert HeadSet.load(tmp_path / "h.json").mode == "late"


@pytest.mark.slow
def test_detect_from_passages(tmp_path, monkeypatch):
    def load(self, heads, mode, **options):
        return QRRetriever(*synonym_model(24), heads=heads, mode=mode, model_name="knowing", **options)

    monkeypatch.setattr(ModelOptions, "load", load)
    passages = tmp_path / "chunks.jsonl"
    passages.write_text("".join(json.dumps({"text": text}) + "\n" for text in synonym_corpus(24)))
    command = ["detect", "--from-passages", str(passages), "--mode", "late", "--out", str(tmp_path / "h.json")]
    done = run(app, [*command, "--scores", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    assert "questions made, for instance: A" in words(done.stderr)
    heads = HeadSet.load(tmp_path / "h.json")
    assert set(heads.heads) == set(KNOWING)
    assert (heads.criterion, heads.task, heads.num_examples) == ("ndcg", "made", 24)
    assert "all heads together" in heads.note
    passages.write_text(json.dumps({"text": synonym_corpus(1)[0]}))
    done = run(app, [*command, "--scores", str(tmp_path / "s")])
    assert done.exit_code == 2
    assert "0 questions can be made from 1 different passages" in words(done.stderr)


def test_detect_needs_data(tmp_path):
    done = run(app, ["detect", "--out", str(tmp_path / "h.json")])
    assert done.exit_code == 2
    assert "no data; expected labelled examples, or --from-passages with passages" in words(done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-heads", "few"], "--num-heads few: expected a number or auto"),
        (["--part", "half"], "--part half: expected two numbers"),
        (["--format", "csv"], "format 'csv' is unknown"),
        (["--max-layer", "-1"], "greater than or equal to 0"),
    ],
)
def test_detect_bad_options(data, tmp_path, options, message):
    done = run(app, ["detect", str(data), "--scores", str(tmp_path / "s"), "--out", str(tmp_path / "h.json"), *options])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "h.json").exists()


def test_malformed_records_are_listed_one_a_line(data, tmp_path):
    data.write_text(data.read_text() + '{"query": "x"}\nnot json\n')
    command = ["evaluate", str(data), "--methods", "random"]
    done = run(app, command)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"{data}:11: documents: Field required")
    assert lines[1].startswith(f"{data}:12: not JSON")
    assert lines[2] == "qrhead: 2 malformed records; mend them, or use the rest with --skip-bad"
    done = run(app, [*command, "--skip-bad"])
    assert done.exit_code == 0, done.output
    assert "10 examples" in done.output
    assert "marks.jsonl:11" in done.stderr


def test_evaluate_compares_methods(data, tmp_path, tiny_load):
    heads = HeadSet(model="hand-made", num_layers=3, num_heads=4, heads=(FINDS,))
    heads.save(tmp_path / "mine.json")
    mine = str(tmp_path / "mine.json")
    command = [
        "evaluate",
        str(data),
        "--methods",
        f"random,bm25,all,1-2,1-3,{mine}@late",
        "--compare",
        f"{mine}@late,random",
    ]
    command += ["--order", "shuffled", "--metrics", "nDCG@10,RR", "--out", str(tmp_path / "out.json")]
    done = run(app, [*command, "--queries", str(tmp_path / "queries.jsonl")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out.json").read_text())
    means = {method["method"]: method["metrics"]["RR"]["mean"] for method in report["methods"]}
    assert means["1-2,1-3"] == means[f"{mine}@late"] == 1.0
    assert means["random"] < 1.0
    assert (report["order"], report["num_examples"], report["data"]) == ("shuffled", 10, "marks.jsonl")
    assert len((tmp_path / "queries.jsonl").read_text().splitlines()) == 5 * 10
    assert "nDCG@10, p = 0." in words(done.output)
    assert len(tiny_load) == 1  # one model in memory serves every head set and mode


@pytest.mark.slow
def test_detect_reports_the_overlap_with_copying_heads(data, tmp_path, tiny_load, monkeypatch):
    monkeypatch.setattr(qrhead_rag.detect.copying, "load_needles", lambda: [NEEDLE])
    monkeypatch.setattr(qrhead_rag.detect.copying, "load_haystack", lambda: "stone and river. cloud or bread. " * 20)
    command = ["detect", str(data), "--out", str(tmp_path / "new" / "h.json"), "--report", str(tmp_path / "new" / "r")]
    command += ["--scores", str(tmp_path / "s"), "--num-heads", "1"]
    done = run(app, [*command, "--copying"])
    assert done.exit_code == 0, done.output
    assert tiny_load == [(None, "writer")]  # one model is read and writes
    assert "the model found 2 of 2 needles" in done.stderr
    assert "copying 0%" in words(done.output)
    report = json.loads((tmp_path / "new" / "r" / "detection.json").read_text())
    assert report["values"]["copying"][COPIES[0]][COPIES[1]] == 1.0
    assert (tmp_path / "new" / "r" / "head_map_copying.png").exists()
    assert HeadSet.load(tmp_path / "new" / "h.json").heads == (FINDS,)
    # what was recorded with the whole model serves the model without output matrix
    before = sorted((tmp_path / "s").iterdir())
    assert run(app, command).exit_code == 0
    assert sorted((tmp_path / "s").iterdir()) == before


def test_detect_refuses_lists_longer_than_the_context_at_once(data, tmp_path, monkeypatch):
    example = labelled(0)
    long = example.documents[0].model_copy(update={"text": "stone " * 600})
    longer = example.model_copy(update={"id": "long", "documents": (*example.documents, long)})
    data.write_text(data.read_text() + longer.model_dump_json() + "\n")
    command = ["detect", str(data), "--scores", str(tmp_path / "s"), "--out", str(tmp_path / "h.json")]
    command += ["--mode", "listwise"]
    done = run(app, command)
    assert done.exit_code == 2
    assert "1 of 11 lists are longer than the model's context of 512 tokens, for instance that of 'long'" in done.stderr
    assert not list((tmp_path / "s").iterdir())
    done = run(app, [*command, "--mode", "late"])
    assert done.exit_code == 0, done.output


def test_evaluate_asks_a_model_to_answer(tmp_path, monkeypatch, tiny_load):
    path = tmp_path / "ask.jsonl"
    example = labelled(2).model_copy(update={"query": "which ask", "answer": "zork"})
    path.write_text(example.model_dump_json() + "\n")
    (tmp_path / "my_judges.py").write_text(
        "def strict(question, reference, answer):\n    return float(answer == 'x')\n"
    )
    monkeypatch.chdir(tmp_path)  # modules are found where the command is given
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = ["evaluate", str(path), "--methods", "1-2", "--answer", "--top-k", "1", "--judge", "my_judges:strict"]
    done = run(app, [*command, "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    answering = json.loads((tmp_path / "out.json").read_text())["answering"]
    assert set(answering["contexts"]) == {"full", "oracle", "1-2"}
    assert answering["contexts"]["oracle"]["exact"]["mean"] == 1.0  # `zork` follows `ask`
    assert answering["contexts"]["oracle"]["judge"]["mean"] == 0.0
    chosen = {answer["context"]: answer["documents"] for answer in answering["answers"]}
    assert chosen["1-2"] == chosen["oracle"] == [2]
    assert tiny_load == [(None, "writer")]  # the model that is read writes


def test_evaluate_lets_another_model_answer(tmp_path, tiny_load):
    path = tmp_path / "ask.jsonl"
    refused = labelled(3).model_copy(update={"relevant": (), "answer": "none", "metadata": {"abstention": True}})
    answered = labelled(2).model_copy(update={"query": "which ask", "answer": "zork"})
    long = answered.documents[0].model_copy(update={"text": "stone " * 600})
    long = answered.model_copy(update={"id": "long", "documents": (*answered.documents, long)})
    path.write_text("".join(example.model_dump_json() + "\n" for example in (refused, answered, long)))
    done = run(app, ["evaluate", str(path), "--methods", "1-2@late", "--answer", "--writer", "other", "--top-k", "1"])
    assert done.exit_code == 0, done.output
    assert [asked[:2] for asked in tiny_load] == [(None, "all"), ("other", "writer")]
    assert "Contexts cut to fit the model: 1 of full;" in words(done.output)
    assert "Questions left out that no context answers: 1;" in words(done.output)


def test_evaluate_bad_options(data):
    done = run(app, ["evaluate", str(data), "--methods", "random", "--compare", "random,bm25"])
    assert done.exit_code == 2
    assert "--compare random,bm25: expected two of random" in done.stderr
    done = run(app, ["evaluate", str(data), "--methods", "random", "--metrics", "goodness"])
    assert done.exit_code == 2
    assert "goodness" in done.stderr
    done = run(app, ["evaluate", "nowhere.json"])
    assert done.exit_code == 2
    assert "nowhere.json" in done.stderr
