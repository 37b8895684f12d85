"""Data sets on Ray: the serial result whatever happens, on one local Ray that talks to nobody."""

import json
import os
import sys

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from qrhead_rag import HeadSet, Passage, PassageStore, QRRetriever
from qrhead_rag.cli import app
from qrhead_rag.cluster.pool import Pool, run_tasks
from qrhead_rag.cluster.rank import RankLists, rank_dataset
from qrhead_rag.cluster.run import Made, run_shards
from qrhead_rag.files import write_json_lines
from qrhead_rag.ranking import encoding
from qrhead_rag.ranking.encoded import EncodedPassages
from tests.helpers.tiny import save_tiny

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]

HEADS = [(1, 0), (2, 1)]
WORDS = ("the", "keeper", "counts", "ships", "lamp", "oil", "fog", "door", "harbour", "boat", "rope", "bell", "storm")


def text(seed, words=6):
    return " ".join(WORDS[(seed * 7 + word * word * (seed + 3)) % len(WORDS)] for word in range(words))


LISTS = [
    {
        "id": number if number % 2 else f"list {number}",
        "query": f"which {text(number, 2)}",
        "documents": [
            text(number + n, 3 + n) if n % 2 else {"text": text(number * n), "title": "T", "id": n}
            for n in range(number % 5 + 1)
        ],
    }
    for number in range(40)
]
POISON = [
    b"{not json",
    b'{"query": "q"}',
    b'{"query": " ", "documents": ["a"]}',
    b"\xff",
    b'{"query": "q", "documents": [1]}',
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model on disk, as actors load it."""
    return str(save_tiny(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture(scope="module")
def pool():
    """Two actors of one CPU each, on a Ray of this process that listens to this machine alone."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield Pool(concurrency=(2, 2))
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Lists in two JSONL files, with poison between them."""
    folder = tmp_path_factory.mktemp("lists")
    lines = [json.dumps(record).encode() for record in LISTS]
    for at, bad in zip((30, 18, 9, 4, 2), POISON, strict=True):
        lines.insert(at, bad)
    (folder / "a.jsonl").write_bytes(b"\n".join(lines[:25]) + b"\n")
    (folder / "b.jsonl").write_bytes(b"\n".join(lines[25:]))
    return folder


@pytest.fixture
def serial(model):
    """The same rankings, one after the other in this process."""
    retriever = QRRetriever.from_pretrained(model, heads=HEADS, device="cpu", cache_bytes=0)

    def rank(record, **options):
        documents = [d if isinstance(d, str) else Passage(**{**d, "id": str(d["id"])}) for d in record["documents"]]
        return retriever.rank(record["query"], documents, **options)

    return rank


@pytest.fixture(scope="module")
def ranked(model, data, pool, tmp_path_factory):
    """The folder of a finished run over the lists."""
    out = tmp_path_factory.mktemp("ranked") / "out"
    progress = []
    done = rank_dataset(
        [str(data / "*.jsonl")], out, model=model, heads=HEADS, pool=pool, shard_bytes=700, on_progress=progress.append
    )
    assert (done.total, done.before, done.done, done.failed) == (45, 0, 45, 5)
    assert progress[0].done == 0
    assert progress[-1] == done
    assert sorted(step.done for step in progress) == [step.done for step in progress]
    assert done.tokens > 45 * 10
    assert min(done.records_per_second, done.tokens_per_second, done.tokens_per_actor_second) > 0
    return out


def rows(folder):
    return [json.loads(line) for file in sorted(folder.glob("part-*")) for line in file.read_text().splitlines()]


def assert_serial(written, serial, **options):
    assert len(written) == len(LISTS)
    for row, record in zip(written, LISTS, strict=True):
        expected = serial(record, **options)
        assert row["id"] == record["id"]
        assert row["ranking"] == [ranked.index for ranked in expected]
        assert row["scores"] == [ranked.score for ranked in expected]
        assert row["documents"] == [ranked.passage.id for ranked in expected]
        assert (row["windowed"], row["truncated"]) == (False, [])


def test_two_actors_give_the_serial_result_in_the_order_of_the_input(ranked, serial, data):
    written = rows(ranked)
    assert_serial(written, serial)
    for row in written:
        line = (data / row["file"]).read_bytes().split(b"\n")[row["line"] - 1]
        assert json.loads(line)["id"] == row["id"]


def errors_in(folder):
    return [json.loads(line) for file in sorted(folder.glob("_errors/*")) for line in file.read_text().splitlines()]


def test_bad_records_go_to_the_errors_with_file_line_and_reason(ranked):
    errors = errors_in(ranked)
    assert [(error["file"], error["line"], error["reason"].split(";")[0].split(" (")[0]) for error in errors] == [
        ("a.jsonl", 3, "document 0: found a JSON int"),
        ("a.jsonl", 6, "not UTF-8"),
        ("a.jsonl", 12, "query is blank"),
        ("a.jsonl", 22, "documents is None"),
        ("b.jsonl", 10, "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ]
    assert not list(ranked.rglob(".*"))
    assert not list((ranked / "_attempts").iterdir())


def actors():
    children = psutil.Process().children(recursive=True)
    return [process for process in children if process.name().startswith("ray::MapWorker")]


def test_a_rerun_redoes_what_is_missing_and_a_killed_actor_loses_nothing(ranked, model, data, pool, serial):
    parts = sorted(ranked.glob("part-*"))
    whole = {part: part.read_bytes() for part in parts}
    missing = parts[1::2]
    for part in missing:
        part.unlink()
    (ranked / ".qrhead-1-dead.tmp").touch()
    stamps = {part: part.stat().st_mtime_ns for part in parts[::2]}
    killed = []

    def kill_one(progress):
        if progress.done and not killed:
            killed.append(actors()[0].pid)
            os.kill(killed[0], 9)

    done = rank_dataset([str(data / "*.jsonl")], ranked, model=model, heads=HEADS, pool=pool, on_progress=kill_one)
    assert killed
    assert {part: part.read_bytes() for part in parts} == whole
    assert {part: part.stat().st_mtime_ns for part in parts[::2]} == stamps
    assert 0 < done.before < done.total == done.before + done.done
    assert not list(ranked.rglob(".*"))
    # all is done: no actor is started
    done = rank_dataset([str(data / "*.jsonl")], ranked, model=model, heads=HEADS, pool=pool)
    assert (done.before, done.done) == (45, 0)
    with pytest.raises(ValueError, match="was started with heads"):
        rank_dataset([str(data / "*.jsonl")], ranked, model=model, heads="all", pool=pool)


def test_the_command_ranks_parquet_and_says_how_fast(model, pool, serial, tmp_path):
    records = [
        {
            **record,
            "id": str(record["id"]),
            "documents": [d if isinstance(d, str) else d["text"] for d in record["documents"]],
        }
        for record in LISTS
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "lists.parquet")
    arguments = ["rank-dataset", str(tmp_path / "lists.parquet"), str(tmp_path / "out"), "--model", model, "--heads"]
    arguments += ["1-0,2-1", "--top-n", "2", "--order", "original", "--concurrency", "1-2", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "40 of 40 lists in" in result.stderr
    assert "lists/s" in result.stderr
    assert "tokens/s an actor" in result.stderr
    written = [row for file in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    for row, record in zip(written, records, strict=True):
        expected = serial(record, top_n=2, order="original")
        assert (row["id"], row["ranking"]) == (record["id"], [ranked.index for ranked in expected])
        assert row["scores"] == [ranked.score for ranked in expected]


# In another batch int8 may round a key that lies between two numbers to the other one.
@pytest.mark.parametrize(("key_dtype", "tolerance"), [("float16", 1e-5), ("int8", 5e-3)])
def test_shards_of_encoded_documents_load_as_one_list(model, pool, tmp_path, key_dtype, tolerance):
    passages = [
        Passage(text=text(n, 4 + n % 9), title="T" if n % 3 else None, id=str(n), metadata={"page": n})
        for n in range(30)
    ]
    passages[7] = Passage(text=" ", id="7", metadata={"page": 7})
    passages[9] = passages[8]
    lines = [json.dumps({"text": p.text, "title": p.title, "id": p.id, **p.metadata}) for p in passages]
    lines.insert(11, '{"title": "no text"}')
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    arguments = [
        "encode-dataset",
        str(tmp_path / "documents.jsonl"),
        str(tmp_path / "out"),
        "--model",
        model,
        "--heads",
    ]
    arguments += ["1-0,2-1", "--device", "cpu", "--concurrency", "2", "--shard-bytes", "300"]
    arguments += ["--key-dtype", key_dtype]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "30 of 31 documents in" in result.stderr
    assert "1 failed" in result.stderr
    assert "some documents could not be used; the reasons are in" in result.stderr
    assert len(list((tmp_path / "out").glob("part-*"))) > 4
    retriever = QRRetriever.from_pretrained(model, heads=HEADS, device="cpu", mode="late", key_dtype=key_dtype)
    loaded = EncodedPassages.load(tmp_path / "out", retriever)
    whole = retriever.encode(passages)
    assert list(loaded) == passages
    for query in ("which ship", "where is the key of the boat"):
        assert loaded.score(query) == pytest.approx(whole.score(query), abs=tolerance)
    assert loaded.nbytes == whole.nbytes
    some = EncodedPassages.load(sorted((tmp_path / "out").glob("part-*"))[:2], retriever)
    assert list(some) == passages[: len(some)]
    loaded.extend(["a new one"])
    assert len(loaded.rank("which ship")) == 31
    listwise = QRRetriever.from_pretrained(model, heads=HEADS, device="cpu")
    with pytest.raises(ValueError, match=r"part-000000.safetensors was encoded with .*mode"):
        EncodedPassages.load(tmp_path / "out", listwise)
    with pytest.raises(FileNotFoundError, match="has no part-"):
        EncodedPassages.load(tmp_path, retriever)


def test_a_data_set_is_encoded_into_a_store(model, pool, tmp_path, monkeypatch):
    texts = [text(n, 4 + n % 9) for n in range(30)]
    lines = [json.dumps({"text": passage}) for passage in texts]
    (tmp_path / "documents.jsonl").write_text("\n".join([*lines, '{"title": "no text"}']))
    store = tmp_path / "chunks.db"
    arguments = ["encode-dataset", str(tmp_path / "documents.jsonl"), str(tmp_path / "out"), "--model", model]
    arguments += ["--heads", "1-0,2-1", "--device", "cpu", "--concurrency", "2", "--shard-bytes", "300"]
    result = CliRunner().invoke(app, [*arguments, "--store", str(store)])
    assert result.exit_code == 0, result.output
    assert "30 of 31 documents in" in result.stderr
    notes = [json.loads(file.read_text()) for file in sorted((tmp_path / "out").glob("part-*.json"))]
    assert sum(note["passages"] for note in notes) == 30
    assert sum(stored.passages for stored in PassageStore(store).contents()) == len(set(texts))
    without = QRRetriever.from_pretrained(model, heads=HEADS, device="cpu", mode="late")
    expected = without.score("which ship", texts)
    monkeypatch.setattr(encoding, "_run", lambda *arguments: pytest.fail("a passage was run"))
    retriever = QRRetriever.from_pretrained(model, heads=HEADS, device="cpu", mode="late", store=store)
    assert retriever.score("which ship", texts) == pytest.approx(expected, abs=1e-5)  # batches differ
    with pytest.raises(FileNotFoundError, match="has no part-"):
        EncodedPassages.load(tmp_path / "out", retriever)


def test_detection_on_actors_records_the_same_files_and_finds_the_same_heads(model, pool, tmp_path):
    for name, numbers in {"first": range(12), "second": range(8, 17)}.items():
        documents = [[text(n * k + 1) for k in range(3)] for n in numbers]
        lines = [
            {"query": f"which {text(n, 2)}", "documents": d, "relevant": [1]}
            for n, d in zip(numbers, documents, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = [str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl"), "--model", model, "--device", "cpu"]

    def detect(name, *arguments):
        files = ["--out", str(tmp_path / f"{name}.json"), "--scores", str(tmp_path / name), "--num-heads", "2"]
        result = CliRunner().invoke(app, ["detect", *data, *files, *arguments])
        assert result.exit_code == 0, result.output
        return HeadSet.load(tmp_path / f"{name}.json"), {
            file.name: load_file(file)["scores"] for file in (tmp_path / name).iterdir()
        }

    heads, recorded = detect("here")
    heads_away, away = detect("away", "--ray", "--concurrency", "2")
    assert heads_away == heads
    assert away.keys() == recorded.keys()
    for name, scores in recorded.items():
        torch.testing.assert_close(away[name], scores)
    refused = CliRunner().invoke(app, ["detect", *data, "--concurrency", "2"])
    assert refused.exit_code == 2
    assert "say where --ray runs" in refused.stderr


def test_the_batch_actor_works_in_a_pipeline_of_ones_own(model, pool, serial):
    import ray

    table = pa.Table.from_pylist(
        [{"key": n, "query": r["query"], "documents": [str(d) for d in r["documents"]]} for n, r in enumerate(LISTS)]
    )
    table = pa.concat_tables(
        [table, pa.Table.from_pylist([{"key": 40, "query": "", "documents": ["a"]}], table.schema)]
    )
    batches = (
        ray.data.from_arrow(table)
        .map_batches(
            RankLists,
            fn_constructor_kwargs={"model": model, "heads": HEADS, "selection": {"top_n": 3}},
            batch_format="pyarrow",
            batch_size=16,
            concurrency=1,
        )
        .take_all()
    )
    batches.sort(key=lambda row: row["key"])
    assert batches[40]["error"].startswith("query is blank")
    assert (list(batches[40]["ranking"]), list(batches[40]["scores"])) == ([], [])
    for row in batches[:40]:
        expected = serial({"query": row["query"], "documents": list(row["documents"])}, top_n=3)
        assert row["error"] is None
        assert list(row["ranking"]) == [ranked.index for ranked in expected]
        assert list(row["scores"]) == [ranked.score for ranked in expected]


def test_an_error_of_the_model_is_no_error_of_the_list(model, monkeypatch):
    lists = RankLists(model, heads=HEADS, device="cpu")
    record = {"query": "the ship", "documents": ["a", "b"]}

    def fail_with(error):
        def rank(*_, **__):
            raise error

        monkeypatch.setattr(lists._retriever, "rank", rank)

    fail_with(torch.OutOfMemoryError("the list is too long for this device"))
    assert lists.rank_list(record) == "the list is too long for this device"
    fail_with(RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        lists.rank_list(record)


KILLED = "failed 2 times; at the last attempt its actor died"


class Moody:
    """Copies the values of a shard, or fails, or takes its process with it."""

    def __init__(self, heads):
        pass

    def __call__(self, records, file):
        values = [record.value for record in records]
        if "kills" in values:
            os.kill(os.getpid(), 9)
        if "fails" in values:
            raise KeyError("the device is gone")
        return Made([None] * len(values), len(values), lambda path: write_json_lines(path, values))


def test_a_shard_that_fails_twice_goes_to_the_errors_and_the_run_goes_on(pool, tmp_path):
    values = [*range(5), "fails", *range(6, 11), "kills", *range(12, 16)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))

    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    done = run_shards("copy", [source], out, Moody, {"heads": None}, pool=pool, shard_bytes=1)
    assert (done.total, done.done, done.failed) == (16, 16, 2)
    assert rows(out) == [value for value in values if isinstance(value, int)]
    assert errors_in(out) == [
        {"file": "in.jsonl", "line": 6, "id": None, "records": 1, "reason": "KeyError: 'the device is gone'"},
        {"file": "in.jsonl", "line": 12, "id": None, "records": 1, "reason": KILLED},
    ]


def test_batches_of_another_kind_and_options_out_of_range_are_refused(model):
    with pytest.raises(TypeError, match='a batch is dict; expected a Table: map_batches\\(batch_format="pyarrow"\\)'):
        RankLists(model, heads=HEADS)({"query": ["q"], "documents": [["a"]]})
    with pytest.raises(ValueError, match="top_n=0 keeps nothing"):
        RankLists(model, heads=HEADS, selection={"top_n": 0})
    with pytest.raises(ValueError, match="concurrency=3-2; expected 1 or more, the smaller number first"):
        Pool(concurrency=(3, 2))


class Echo:
    """Returns a task, or fails."""

    def __call__(self, task):
        if task == "fails":
            raise KeyError("a fault of the program")
        return {"task": task, "threads": torch.get_num_threads()}


def test_an_error_in_an_actor_is_raised_as_it_was(pool):
    assert list(run_tasks(pool, Echo, {}, [{"a": 1}])) == [{"task": {"a": 1}, "threads": 2}]
    with pytest.raises(KeyError, match=r"^'a fault of the program'$"):
        list(run_tasks(pool, Echo, {}, ["fails"]))


def test_a_model_that_is_not_there_is_named_in_one_line(pool, data, tmp_path):
    arguments = [
        "rank-dataset",
        str(data),
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "nothing"),
        "--heads",
        "all",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / "nothing") in result.stderr


def test_actors_that_this_machine_cannot_hold_are_refused(pool):
    assert list(run_tasks(pool, Echo, {}, [])) == []
    with pytest.raises(
        ValueError, match="2 actors of 2 CPUs each are wanted, this machine has 2; use fewer, or a cluster"
    ):
        list(run_tasks(Pool(concurrency=(2, 2), cpus=2), Echo, {}, [1, 2]))
    with pytest.raises(ValueError, match="1 actors of 1 GPUs each are wanted, this machine has 0"):
        list(run_tasks(Pool(gpus=1), Echo, {}, [1, 2]))


def test_lists_stream_through_an_actor_in_flat_memory(model, pool, tmp_path):
    with (tmp_path / "lists.jsonl").open("w") as file:
        for number in range(1200):
            file.write(
                json.dumps({"query": f"ship {number}", "documents": [text(number, 2), text(number + 1, 2)]}) + "\n"
            )
    resident = {}

    def measure(progress):
        if progress.done >= 300:
            resident[progress.done] = sum(process.memory_info().rss for process in actors())

    done = rank_dataset(
        [tmp_path / "lists.jsonl"],
        tmp_path / "out",
        model=model,
        heads=[(0, 0)],
        pool=pool,
        on_progress=measure,
    )
    assert (done.done, done.failed) == (1200, 0)
    assert len(rows(tmp_path / "out")) == 1200
    measured = [resident[done] for done in sorted(resident)]
    assert len(measured) > 8
    assert max(measured[-3:]) < 1.03 * max(measured[:3])


@pytest.mark.parametrize(("package", "source"), [("ray", "lists.jsonl"), ("pyarrow", "lists.parquet")])
def test_without_ray_the_command_names_the_extra(package, source, tmp_path, monkeypatch):
    (tmp_path / source).write_text('{"query": "q", "documents": ["a"]}\n')
    monkeypatch.setitem(sys.modules, package, None)  # not to be found
    result = CliRunner().invoke(app, ["rank-dataset", str(tmp_path / source), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "is missing; install it with: pip install 'qrhead-rag[ray]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "two"], "--concurrency two: expected a number, or two as in 1-8"),
        (["--concurrency", "4-2"], "concurrency=4-2; expected 1 or more"),
        (["--gpus", "-1"], "greater than or equal to 0"),
        (["--shard-bytes", "0"], "shard_bytes=0; expected 1 or more"),
        (["--top-n", "0"], "top_n=0 keeps nothing"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(arguments, message, data, tmp_path):
    result = CliRunner().invoke(app, ["rank-dataset", str(data), str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
