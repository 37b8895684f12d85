"""The command on streams that lack a sign: what can be written is, the rest is replaced."""

import io
import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from qrhead_rag import QRRetriever
from qrhead_rag.cli import app, output
from qrhead_rag.cli.options import ModelOptions
from tests.detect.test_detection import hand_made, labelled
from tests.helpers.tiny import tiny_model, tiny_tokenizer

TINY = ("--heads", "1-0,2-1", "--device", "cpu")
# A command with foreign signs in what it is asked, the exit code, and what it says of them.
COMMANDS = {
    "rank": (("rank", "灯?", "灯.jsonl", "--explain", "--model", "model", *TINY), 0, "lamp ?"),
    "heads": (("heads", "--model", "灯"), 2, "no head set is shipped for a model named like"),
    "demo": (("demo", "--question", "bed 灯", "--mode", "late", "--model", "model", *TINY), 0, "bed ?"),
    "detect": (("detect", "灯.jsonl", "--out", "灯.json", "--num-heads", "1"), 0, "?: 5 examples of 6 documents"),
    "evaluate": (("evaluate", "none灯.jsonl"), 2, "no file or folder none"),
    "calibrate": (("calibrate", "none灯.jsonl"), 2, "no file or folder none"),
    "encode": (("encode", "none灯.jsonl", "--store", "灯.db"), 2, "none"),
    "store": (("store", "stats", "none灯.db"), 2, "none"),
    "rank-dataset": (("rank-dataset", "none灯.jsonl", "out"), 2, "none"),
    "encode-dataset": (("encode-dataset", "none灯.jsonl", "out"), 2, "none"),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The model and the files that the commands name; `detect` gets the hand-made model, which finds something."""

    def load(self, heads, mode, **options):
        return QRRetriever(*hand_made(), heads=heads, mode=mode, model_name="hand-made", **options)

    def prepare(command):
        tiny_model().save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        records = [{"text": "灯"}, {"text": "lamp 灯 “quoted” – été", "title": "灯", "id": "灯"}]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        if command == "detect":
            lines = [labelled(number).model_dump_json() for number in range(5)]
            monkeypatch.setattr(ModelOptions, "load", load)
        (tmp_path / "灯.jsonl").write_text("\n".join(lines), encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    return prepare


def test_every_command_has_its_case():
    assert COMMANDS.keys() == get_command(app).commands.keys()


@pytest.mark.parametrize("charset", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_stream_lacks_is_replaced(files, command, charset):
    arguments, code, message = COMMANDS[command]
    files(command)
    result = CliRunner(charset=charset).invoke(app, list(arguments), env={"COLUMNS": "160", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "codec" not in result.output


def test_without_the_replacing_the_ranking_is_lost(files, monkeypatch):
    files("rank")
    monkeypatch.setattr("qrhead_rag.cli.replace_unencodable", lambda: None)
    result = CliRunner(charset="ascii").invoke(app, list(COMMANDS["rank"][0]))
    assert result.exit_code == 2
    assert "lamp" not in result.stdout


@pytest.mark.parametrize(("errors", "written"), [("strict", b"a ?"), ("backslashreplace", b"a \\u706f")])
def test_a_stream_that_escapes_is_left_so(monkeypatch, errors, written):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "ascii", errors))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    output.replace_unencodable()
    print("a 灯", end="", flush=True)
    assert content.getvalue() == written


def test_a_process_whose_encoding_is_ascii():
    """The real streams, and a command that nobody has thought of."""
    code = "from qrhead_rag.cli import app\napp.command('say')(lambda: print('a \u706f'))\napp(['say'])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a ?\n", b"")
