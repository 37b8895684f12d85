"""What is wrong with a record stays with its file and line, whatever is wrong; ids may be numbers; arrays of passages."""

import copy
import json

import pytest

from qrhead_rag.datasets.load import DatasetError, load_examples
from qrhead_rag.datasets.passages import parse_passages
from tests.datasets.test_datasets import HOTPOT, LOCOMO, LONGMEMEVAL, PARAGRAPHS

COLUMNS = {"context": {"title": ["Mill"], "sentences": [["A mill."]]}, "supporting_facts": {"title": [], "sent_id": []}}
DPR = {"id": 3, "question": "who?", "answers": ["a"], "ctxs": [{"id": 1, "title": "t", "text": "x a", "isgold": True}]}
RECORDS = {
    "hotpotqa": [HOTPOT, HOTPOT | COLUMNS],
    "musique": [{"id": "m", "question": "What?", "answer": "B", "answer_aliases": ["b"], "paragraphs": PARAGRAPHS}],
    "qrhead": [{"idx": 7, "question": "What?", "paragraphs": PARAGRAPHS, "gt_docs": ["1"]}],
    "longmemeval": [LONGMEMEVAL],
    "locomo": [LOCOMO],
    "dpr": [DPR, DPR | {"ctxs": [*DPR["ctxs"], {"text": "b", "isgold": False}]}],
    "jsonl": [{"query": "which?", "documents": ["one", {"text": "two", "id": "b"}], "relevant": ["b"], "grades": [1]}],
}
JUNK = [None, True, -1, 1.5, float("nan"), 10**400, "", "7", "\ud83d", [], [[]], {}, {"title": None}]
ABSENT = object()


def places(value, path=()):
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(record, path, junk):
    record = copy.deepcopy(record)
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if junk is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = junk
    return record


@pytest.mark.parametrize("format", RECORDS)
def test_whatever_is_in_a_record_its_error_has_file_and_line(tmp_path, format):
    records = [
        changed(record, path, junk) for record in RECORDS[format] for path in places(record) for junk in [*JUNK, ABSENT]
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        load_examples(path, format=format)
    lines = [problem.line for problem in caught.value.problems]
    assert len(lines) > len(records) / 4
    assert set(lines) <= set(range(1, len(records) + 1))
    with pytest.warns(UserWarning, match="malformed records"):
        assert load_examples(path, format=format, skip_bad=True)


@pytest.mark.parametrize(
    ("format", "numbers"),
    [
        ("hotpotqa", HOTPOT | {"_id": 7}),
        ("musique", RECORDS["musique"][0] | {"id": 7}),
        ("qrhead", RECORDS["qrhead"][0] | {"gt_docs": [1]}),
        ("dpr", DPR | {"id": 7}),
        ("longmemeval", LONGMEMEVAL | {"question_id": 7, "haystack_session_ids": [1, 2], "answer_session_ids": [2]}),
        ("jsonl", {"id": 7, "query": "q?", "documents": [{"text": "a", "id": 1}, {"text": "b"}], "relevant": ["1"]}),
    ],
)
def test_ids_may_be_numbers(tmp_path, format, numbers):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(numbers), encoding="utf-8")
    [example] = load_examples(path, format=format)
    assert (example.id, len(example.relevant) > 0) == ("7", True)


def test_a_conversation_may_have_a_number(tmp_path):
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([LOCOMO | {"sample_id": 7}]), encoding="utf-8")
    assert [example.id for example in load_examples(path)] == ["7:0", "7:1"]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (
            "jsonl",
            {"query": "q?", "documents": [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "relevant": ["x"]},
        ),
        ("qrhead", {"idx": 1, "question": "q?", "paragraphs": [PARAGRAPHS[0], PARAGRAPHS[0]], "gt_docs": [0]}),
    ],
)
def test_an_id_of_several_documents_is_no_label(tmp_path, format, record):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"records\.jsonl:1: .* names \['.'\], which several documents have"):
        load_examples(path, format=format)


def test_a_grade_that_trec_eval_has_no_room_for_is_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(
        json.dumps({"query": "q?", "documents": ["a"], "relevant": [0], "grades": [2**31]}), encoding="utf-8"
    )
    with pytest.raises(DatasetError, match=r"records\.jsonl:1: .*grades \[2147483648\]: .* a grade from 1 to 1000000"):
        load_examples(path)


def passages(text):
    return [(line, passage.text) for line, passage in parse_passages(text.encode(), "jsonl", "chunks.jsonl")]


@pytest.mark.parametrize(
    "text", ['\n[{"text": "a"},\n\n{"text": "b", "id": 3}]\n', '\n{"text": "a"}\n\n{"text": "b", "id": 3}']
)
def test_passages_are_an_array_or_a_line_each(text):
    assert passages(text) == [(2, "a"), (4, "b")]


def test_one_passage_may_take_several_lines():
    assert passages('{\n "text": "a"\n}') == [(1, "a")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, "b"]', r"chunks\.jsonl:1: found a JSON str; expected an object"),
        ('[\n{"text": "a"}\n{"text": "b"}]', r"chunks\.jsonl:3: not JSON: expected ',' or '\]'"),
        ('[{"text": "a"}]\n{"text": "b"}', r"chunks\.jsonl:2: not JSON: the array ends before this line"),
        ('[{"text": "a"},', r"chunks\.jsonl:1: not JSON"),
        ("[]", r"chunks\.jsonl:1: found a JSON list; expected an object"),
        ('{"text": "a"}\n{\n"text": "b"}', r"chunks\.jsonl:2: not JSON: .*; expected a whole object on each line"),
    ],
)
def test_what_is_no_passage_is_named_by_line(text, message):
    with pytest.raises(ValueError, match=message):
        passages(text)
