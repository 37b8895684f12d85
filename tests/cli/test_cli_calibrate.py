"""`qrhead calibrate`, `qrhead evaluate --abstain` and `qrhead rank --min-evidence`, on a model made by hand."""

import json

import pytest
from typer.testing import CliRunner

from qrhead_rag import QRRetriever
from qrhead_rag.cli import app
from qrhead_rag.cli.options import ModelOptions
from tests.detect.test_detection import hand_made, labelled

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def tiny_load(monkeypatch):
    def load(self, heads, mode, **options):
        made, tokenizer = hand_made()
        options = {"readout": "evidence", **options}
        return QRRetriever(made, tokenizer, heads=[(1, 2)], mode=mode, model_name="hand-made", **options)

    monkeypatch.setattr(ModelOptions, "load", load)


def data(tmp_path, number):
    path = tmp_path / "marks.jsonl"
    path.write_text("".join(labelled(index).model_dump_json() + "\n" for index in range(number)), encoding="utf-8")
    return str(path)


def words(output):
    return " ".join(output.split())


def test_calibrate_recommends_a_floor_and_writes_it(tmp_path):
    out = tmp_path / "new" / "floor.json"
    done = run(app, ["calibrate", data(tmp_path, 24), "--mode", "late", "--max-wrong", "0.1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert f"min_evidence={report['floor']:.4f}" in done.output
    assert "marks.jsonl: area under the curve 1.000" in words(done.output)
    assert "of those with a relevant document and passes on 0%" in words(done.output)
    assert (report["num_with"], report["num_without"], report["mode"]) == (24, 24, "late")
    assert len(report["lists"]) == 24
    assert all(pair["with_relevant"] > report["floor"] > pair["without_relevant"] for pair in report["lists"])
    points = report["curve"]
    assert points[0] == {"floor": 0.0, "kept": 1.0, "passed_on": 1.0}


def test_calibrate_says_why_it_recommends_none(tmp_path):
    done = run(app, ["calibrate", data(tmp_path, 3)])
    assert done.exit_code == 0, done.output
    assert "No floor is recommended: 3 lists with a relevant passage and 3 without" in words(done.output)
    refused = run(app, ["calibrate", data(tmp_path, 3), "--max-wrong", "2"])
    assert refused.exit_code == 2
    assert "max_wrong=2.0 is no share of lists" in refused.stderr
    published = run(app, ["calibrate", data(tmp_path, 3), "--readout", "published"])
    assert published.exit_code == 2
    assert "gives no evidence" in published.stderr


def test_evaluate_prints_the_curve_of_every_method_with_evidence(tmp_path):
    out = tmp_path / "out.json"
    command = ["evaluate", data(tmp_path, 24), "--abstain", "--out", str(out)]
    done = run(app, [*command, "--methods", "random,1-2@late@evidence,1-2@late@published"])
    assert done.exit_code == 0, done.output
    assert "1-2@late@evidence: area under the curve 1.000" in words(done.output)
    assert list(json.loads(out.read_text())["abstaining"]) == ["1-2@late@evidence"]
    refused = run(app, [*command, "--methods", "random,1-2@late@published"])
    assert refused.exit_code == 2
    assert "--abstain: none of random, 1-2@late@published has evidence" in refused.stderr


def test_rank_refuses_a_list_below_the_floor(tmp_path):
    passages = tmp_path / "passages.txt"
    passages.write_text("Bread is baked.\nThe ferry leaves.\n")
    command = ["rank", "When?", str(passages), "--mode", "late", "--min-evidence", "1"]
    done = run(app, command)
    assert done.exit_code == 0, done.output
    assert "nothing was found: the evidence of the list is 0." in done.stderr
    assert "Bread" not in done.stdout
    first = run(app, [*command, "--fallback", "first_stage", "--top-n", "1", "--json"])
    report = json.loads(first.stdout)
    assert report["abstained"]
    assert [document["line"] for document in report["documents"]] == [1]
