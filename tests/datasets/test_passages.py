"""Files and folders of passages without labels."""

import json

import pytest

from qrhead_rag.datasets.passages import read_passages


def test_lines_and_objects(tmp_path):
    (tmp_path / "a.txt").write_text("First.\n\nSecond.\r\n")
    assert [passage.text for passage in read_passages(tmp_path / "a.txt")] == ["First.", "Second."]
    for name, content in (("a.jsonl", '{"text": "x", "title": "T"}\n'), ("a.json", '[{"text": "x", "title": "T"}]')):
        (tmp_path / name).write_text(content)
        (passage,) = read_passages(tmp_path / name)
        assert (passage.text, passage.title) == ("x", "T")


def test_a_folder_of_text_files_has_a_passage_for_each_paragraph(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.md").write_text("# Ferries\n\nThe ferry\nleaves at nine.\n\n\nBread.\n")
    (tmp_path / "deep" / "a.txt").write_text("Alone.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    texts = [passage.text for passage in read_passages(tmp_path)]
    assert texts == ["# Ferries", "The ferry\nleaves at nine.", "Bread.", "Alone."]


def test_rows_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "page": [3, 4]}), tmp_path / "a.parquet")
    passages = read_passages(tmp_path / "a.parquet")
    assert [(passage.text, passage.metadata) for passage in passages] == [("x", {"page": 3}), ("y", {"page": 4})]
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"b\.parquet is not a Parquet file"):
        read_passages(tmp_path / "b.parquet")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.txt or \.md file"):
        read_passages(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_passages(tmp_path / "absent.txt")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"a\.pdf ends in '\.pdf'; expected"):
        read_passages(tmp_path / "a.pdf")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": 3}))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: text is 3"):
        read_passages(tmp_path / "a.jsonl")
