"""Data sets cut into shards, and the folder that a run over them writes: nothing lost, nothing done twice."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrhead_rag.cluster.run import Made, _ShardWork
from qrhead_rag.cluster.shards import ShardFolder, cut, find_files, fingerprint, read
from qrhead_rag.datasets.passages import list_record
from qrhead_rag.datasets.records import RawRecord

RECORDS = [{"id": n, "query": "q" * (n % 7 + 1), "documents": ["d" * n, {"text": "t"}][: n % 3]} for n in range(40)]


@pytest.mark.parametrize("shard_bytes", [1, 200, 1500, 10**6])
def test_shards_hold_every_line_once_with_its_number(tmp_path, shard_bytes):
    lines = [json.dumps(record) + "\n" + "\n" * (n % 4 == 0) for n, record in enumerate(RECORDS)]
    file = tmp_path / "lists.jsonl"
    file.write_text("\ufeff" + "".join(lines).removesuffix("\n"), encoding="utf-8")
    shards = cut([file], shard_bytes)
    by_shard = [list(read(shard)) for shard in shards]
    assert [shard.num_records for shard in shards] == list(map(len, by_shard))
    assert [record.value for records in by_shard for record in records] == RECORDS
    text = file.read_text(encoding="utf-8-sig").split("\n")
    assert all(json.loads(text[record.line - 1]) == record.value for records in by_shard for record in records)
    assert len(shards) == {1: 40, 10**6: 1}.get(shard_bytes, len(shards))


@pytest.mark.parametrize("row_group", [1, 16, 1000])
@pytest.mark.parametrize("shard_bytes", [1, 200, 10**6])
@pytest.mark.slow
def test_shards_hold_every_row_once_with_its_number(tmp_path, row_group, shard_bytes):
    records = [
        {"id": n, "query": "q" * (n % 7), "documents": [{"text": "t" * n, "title": None}] * (n % 3)} for n in range(40)
    ]
    file = tmp_path / "lists.parquet"
    pq.write_table(pa.Table.from_pylist(records), file, row_group_size=row_group)
    shards = cut([file], shard_bytes)
    read_back = [record for shard in shards for record in read(shard)]
    assert [(record.line, record.value) for record in read_back] == list(enumerate(records, start=1))


@given(
    st.lists(st.sampled_from([b"{}", b"", b" ", b"[1", b"\xff", b'"x"', b"9" * 30]), max_size=30), st.integers(1, 40)
)
def test_any_cut_of_any_lines_reads_like_the_whole(tmp_path_factory, lines, shard_bytes):
    file = tmp_path_factory.mktemp("lines") / "lists.jsonl"
    file.write_bytes(b"\n".join(lines))
    whole = [record for shard in cut([file], 10**9) for record in read(shard)]
    assert [record for shard in cut([file], shard_bytes) for record in read(shard)] == whole
    assert len(whole) == sum(bool(line.strip()) for line in lines)
    assert all(isinstance(record, RawRecord) or record.reason.startswith("not ") for record in whole)


def test_files_match_by_name_folder_and_pattern_each_once(tmp_path):
    names = ["b.jsonl", "a.jsonl", "c.parquet", "_errors.jsonl", ".hidden.jsonl", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    files = find_files([tmp_path / "b.jsonl", str(tmp_path / "*.jsonl"), tmp_path])
    assert [file.name for file in files] == ["b.jsonl", "_errors.jsonl", "a.jsonl", "c.parquet"]
    with pytest.raises(FileNotFoundError, match=r"nothing\*: no file there; expected .jsonl or .parquet"):
        find_files([tmp_path / "nothing*"])
    with pytest.raises(ValueError, match=r"notes.txt: unknown kind of file"):
        find_files([tmp_path / "notes.txt"])
    with pytest.raises(ValueError, match=r"c.parquet is not a whole Parquet file"):
        cut([tmp_path / "c.parquet"], 100)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "found a JSON list; expected an object with query and documents"),
        ({"documents": []}, "query is None; expected a string"),
        ({"query": " ", "documents": []}, "query is blank"),
        ({"query": "q"}, "documents is None; expected a list"),
        ({"query": "q", "documents": "one"}, "documents is 'one'; expected a list"),
        ({"query": "q", "documents": ["a", 3]}, "document 1: found a JSON int; expected an object"),
        ({"query": "q", "documents": [{"text": 3}]}, "document 0: text is 3; expected a string"),
        ({"query": "q", "documents": [], "id": 1.5}, "id is 1.5; expected a string, a whole number or none"),
    ],
)
def test_a_record_that_is_no_list_says_why(value, reason):
    with pytest.raises(ValueError, match=reason):
        list_record(value)


def test_a_list_record_is_read_as_people_write_them():
    documents = ["one", {"text": "two", "title": "T", "id": 2, "page": 7}]
    record = list_record({"id": "x", "query": "q", "documents": documents, "relevant": [1]})
    assert (record.id, record.query) == ("x", "q")
    assert [passage.model_dump() for passage in record.documents] == [
        {"text": "one", "title": None, "id": None, "metadata": {}},
        {"text": "two", "title": "T", "id": "2", "metadata": {"page": 7}},
    ]
    assert documents[1] == {"text": "two", "title": "T", "id": 2, "page": 7}


def test_a_run_is_resumed_only_with_its_options(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    settings = {"mode": "late", "inputs": [fingerprint(file)]}
    folder = ShardFolder(tmp_path / "out", ".jsonl")
    folder.claim(settings)
    folder.claim(settings)
    with pytest.raises(ValueError, match="was started with mode 'late', this run has 'listwise'; resume it with"):
        folder.claim(settings | {"mode": "listwise"})
    file.write_text("[]\n")
    with pytest.raises(ValueError, match="was started with inputs"):
        folder.claim(settings | {"inputs": [fingerprint(file)]})
    with pytest.raises(ValueError, match="holds something else than a run"):
        ShardFolder(tmp_path, ".jsonl").claim(settings)
    (tmp_path / "out" / "_run.json").write_text("{")
    with pytest.raises(ValueError, match=r"_run\.json cannot be read"):
        folder.claim(settings)


class Died(BaseException):
    """Stands for the death of an actor: no handler in the package catches it."""


class Copies:
    """Copies the values of records; some of them fail or kill."""

    def __call__(self, records, file):
        values = [record.value for record in records]
        if "kills" in values:
            raise Died
        if "fails" in values:
            raise RuntimeError("no memory")
        reasons = ["is bad" if value == "bad" else None for value in values]
        kept = [value for value in values if value != "bad"]
        return Made(reasons, len(values), lambda path: path.write_text(json.dumps(kept)))


@pytest.fixture
def shard_work(tmp_path):
    """Makes the folder of a run over lines in one shard; returns it and a function that works on the shard."""

    def make(lines, maker=Copies):
        file = tmp_path / "in.jsonl"
        file.write_text("\n".join(lines))
        folder = ShardFolder(tmp_path / "out", ".json")
        folder.claim({})
        [shard] = cut([file], 10**6)
        return folder, lambda: _ShardWork(maker, {}, str(folder.folder), ".json", str(tmp_path))(shard)

    return make


def errors_in(folder):
    return [json.loads(line) for line in folder.errors(0).read_text().splitlines()]


def test_bad_records_go_to_the_errors_with_their_reasons(shard_work):
    folder, work = shard_work(["0", '{"id": 7}', '"bad"', "{", "", "4"])
    assert work()[:3] == (0, 2, 4)
    assert json.loads(folder.result(0).read_text()) == [0, {"id": 7}, 4]
    assert [(error["file"], error["line"], error["reason"].split(":")[0]) for error in errors_in(folder)] == [
        ("in.jsonl", 3, "is bad"),
        ("in.jsonl", 4, "not JSON"),
    ]


def test_a_shard_that_fails_twice_goes_to_the_errors_with_its_reason(shard_work):
    folder, work = shard_work(["0", '"fails"', "{"])
    assert work()[:3] == (0, None, 0)  # to be tried again
    assert not folder.errors(0).exists()
    assert work()[:3] == (0, 3, 0)
    reason = "RuntimeError: no memory"
    assert errors_in(folder) == [{"file": "in.jsonl", "line": 1, "id": None, "records": 3, "reason": reason}]
    assert not folder.result(0).exists()
    folder.claim({})  # a resumed run tries it again
    assert work()[:3] == (0, None, 0)


def test_a_shard_whose_actor_dies_twice_goes_to_the_errors(shard_work):
    folder, work = shard_work(["0", '"kills"'])
    for _ in range(2):
        with pytest.raises(Died):
            work()
    assert work()[:3] == (0, 2, 0)
    assert [error["reason"] for error in errors_in(folder)] == ["failed 2 times; at the last attempt its actor died"]
    assert not folder.result(0).exists()


def test_a_finished_shard_may_be_asked_for_again(shard_work):
    _, work = shard_work(["0", "1"])
    assert [work()[:3] for _ in range(4)] == [(0, 0, 2)] * 4  # Ray does so where a machine with reports is lost


def test_a_shard_has_a_result_only_if_its_errors_are_written(shard_work):
    class Fails(Copies):
        def __call__(self, records, file):
            def write(path):
                raise Died

            return super().__call__(records, file)._replace(write=write)

    folder, work = shard_work(['"bad"', "1"], Fails)
    with pytest.raises(Died):
        work()
    assert folder.errors(0).exists()
    assert not folder.result(0).exists()
