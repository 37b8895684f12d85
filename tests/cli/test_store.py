"""`qrhead encode` and `qrhead store`: a corpus is encoded once, ranked from the store, counted, checked and trimmed."""

import json

import pytest
from typer.testing import CliRunner

from qrhead_rag.cli import app
from qrhead_rag.ranking import encoding
from qrhead_rag.ranking.byte_store import SqliteStore

TEXTS = ["The keeper paints the door.", "Forty ships passed on Monday.", "The lamp burns oil.", "Fog came at noon."]


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "log.txt"
    file.write_text("\n".join(TEXTS))
    return str(file)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "chunks.db"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120", "NO_COLOR": "1"})


def encoded(folder, texts, store, *arguments):
    model = ("--model", folder, "--heads", "1-0,2-1", "--device", "cpu")
    result = invoke("encode", texts, "--store", store, *model, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_corpus_is_encoded_once(folder, texts, store, tmp_path, monkeypatch):
    assert encoded(folder, texts, store) == f"4 documents, 4 of them encoded now, in {store}\n"
    assert encoded(folder, texts, store) == f"4 documents, 0 of them encoded now, in {store}\n"
    records = tmp_path / "more.jsonl"
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TEXTS[0], "A fifth line."]))
    assert encoded(folder, records, store).startswith("2 documents, 1 of them")
    arguments = ("rank", "how many ships passed", texts, "--mode", "late", "--json")
    model = ("--model", folder, "--heads", "1-0,2-1", "--device", "cpu")
    expected = json.loads(invoke(*arguments, *model).stdout)
    monkeypatch.setattr(encoding, "_run", lambda *arguments: pytest.fail("a passage was run"))
    assert json.loads(invoke(*arguments, *model, "--store", store).stdout) == expected


def test_what_was_encoded_in_8_bits_is_ranked_from_the_store(folder, texts, store, monkeypatch):
    encoded(folder, texts, store, "--key-dtype", "int8")
    monkeypatch.setattr(encoding, "_run", lambda *arguments: pytest.fail("a passage was run"))
    model = ("--model", folder, "--heads", "1-0,2-1", "--device", "cpu", "--mode", "late")
    result = invoke("rank", "how many ships passed", texts, *model, "--key-dtype", "int8", "--store", store)
    assert (result.exit_code, result.stderr) == (0, "")


def test_stats_name_each_model_and_its_settings(folder, texts, store):
    encoded(folder, texts, store)
    encoded(folder, texts, store, "--key-dtype", "int8")
    result = invoke("store", "stats", store)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:3]]
    assert {(row[1], row[-2]) for row in rows} == {("4", "float16"), ("4", "int8")}
    assert "MB of values in" in result.stdout


def test_settings_that_are_no_longer_used_are_deleted(folder, texts, store):
    encoded(folder, texts, store)
    encoded(folder, texts, store, "--key-dtype", "int8")
    digest = next(line.split()[0] for line in invoke("store", "stats", store).stdout.splitlines() if "int8" in line)
    assert invoke("store", "prune", store, "--settings", digest).stdout.startswith("4 deleted")
    assert "int8" not in invoke("store", "stats", store).stdout
    assert encoded(folder, texts, store).startswith("4 documents, 0 of them")
    largest = str(SqliteStore(store).stats().nbytes - 1)
    assert invoke("store", "prune", store, "--max-bytes", largest).stdout.startswith("1 deleted")
    row = invoke("store", "stats", store).stdout.splitlines()[1].split()
    assert (row[1], row[-2]) == ("3", "float16")  # the settings, which were written first, still say what is there
    assert invoke("store", "prune", store, "--max-bytes", "0").exit_code == 0
    assert encoded(folder, texts, store).startswith("4 documents, 4 of them")


def test_damaged_passages_are_counted_and_deleted(folder, texts, store):
    encoded(folder, texts, store)
    assert invoke("store", "verify", store).stdout == "4 passages checked, 0 damaged\n"
    byte_store = SqliteStore(store)
    byte_store.mset([(next(byte_store.yield_keys(prefix="passages/")), b"damaged")])
    result = invoke("store", "verify", store)
    assert (result.exit_code, result.stdout) == (1, "4 passages checked, 1 damaged\n")
    assert invoke("store", "verify", store, "--delete").stdout == "4 passages checked, 1 damaged and deleted\n"
    assert invoke("store", "verify", store).stdout == "3 passages checked, 0 damaged\n"


@pytest.mark.parametrize("command", ["stats", "verify", "prune"])
def test_a_file_that_is_not_there_or_no_store(command, tmp_path):
    arguments = ("--max-bytes", "1") if command == "prune" else ()
    result = invoke("store", command, tmp_path / "none.db", *arguments)
    assert result.exit_code == 2
    assert "is no file; expected a store that `qrhead encode` wrote" in result.stderr
    (tmp_path / "text.db").write_text("a text of the user's")
    result = invoke("store", command, tmp_path / "text.db", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("qrhead: ")
    assert (tmp_path / "text.db").read_text() == "a text of the user's"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.db"]


def test_pruning_says_what_it_needs(folder, texts, store):
    encoded(folder, texts, store)
    assert "expected --max-bytes or --settings" in invoke("store", "prune", store).stderr
    result = invoke("store", "prune", store, "--settings", "zz")
    assert result.exit_code == 2
    assert "0 settings in" in result.stderr
