"""Files that are truncated, flipped, forged, swapped or written by many at once: a clear error or a rebuild, never more.

Nothing the package reads is unpickled, and nothing that a file holds reaches torch unchecked.
"""

import ast
import json
import multiprocessing
import os
import pickle
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import qrhead_rag
from qrhead_rag import HeadSet, LabelledExample, Passage, QRRetriever
from qrhead_rag.cli import app
from qrhead_rag.datasets.load import READERS, load_examples
from qrhead_rag.detect.recording import record
from qrhead_rag.files import atomic_write
from qrhead_rag.models import embedded as embedded_model
from qrhead_rag.models import loading
from qrhead_rag.ranking.encoded import EncodedPassages
from qrhead_rag.ranking.store import store_of
from qrhead_rag.ranking.tensor_file import read_encoded, write_encoded
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts the ships?"
DOCUMENTS = [
    "The keeper counts the ships.",
    Passage(text="Nothing passes. " * 8, title="Log", id="b", metadata={"page": 3}),
    "",
    "A third one",
]
SET = HeadSet(model="some/model", architecture="llama", num_layers=4, num_heads=4, heads=HEADS, task="nq")
PROCESSES = 8

fast = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def late(**options):
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode="late", piece_tokens=32, **options)


@pytest.fixture(scope="module")
def retriever():
    return late()


@pytest.fixture(scope="module")
def scores(retriever):
    return retriever.score(QUERY, DOCUMENTS)


@pytest.fixture(scope="module")
def stored(retriever, tmp_path_factory):
    """A saved list: its bytes."""
    path = tmp_path_factory.mktemp("late") / "list.safetensors"
    retriever.encode(DOCUMENTS).save(path)
    return path.read_bytes()


@pytest.fixture
def powerless():
    """Rights taken away, where the tests run with all of them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def names_the_file(error, path):
    assert str(path) in str(error)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".qrhead")]


BOMBS = {
    "nested lists": "[" * 200_000,
    "nested objects": '{"model":' * 200_000,
    "a number of a million digits": "1" * 1_000_000,
    "nothing": "",
    "a byte order mark": "\ufeff{}",
    "NaN": "NaN",
    "a list": "[]",
    "a string": '"heads"',
    "null": "null",
}


# Head sets.


def test_a_head_set_cut_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "heads.json"
    SET.save(path)
    whole = path.read_bytes()
    assert HeadSet.load(path) == SET
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"heads\.json is not JSON"):
            HeadSet.load(path)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_json_that_is_no_head_set(tmp_path, text):
    path = tmp_path / "heads.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"heads\.json is not"):
        HeadSet.load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@fast
@given(name=st.sampled_from([*HeadSet.model_fields, "other"]), value=json_values)
def test_a_head_set_with_any_value_in_any_field(tmp_path, name, value):
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(SET.model_dump(mode="json") | {name: value}), encoding="utf-8")
    try:
        loaded = HeadSet.load(path)
    except ValueError as error:
        names_the_file(error, path)
    else:
        assert all(0 <= layer < loaded.num_layers and 0 <= head < loaded.num_heads for layer, head in loaded.heads)
        loaded.save(path)
        assert HeadSet.load(path) == loaded


def test_thousands_of_repeated_heads_are_refused_at_once(tmp_path):
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(SET.model_dump(mode="json") | {"heads": [[1, 1]] * 30_000}))
    with pytest.raises(ValueError, match=r"found twice: \[\(1, 1\)\]"):
        HeadSet.load(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "heads.json"
    for content in (b"\xff\xfe\x00", pickle.dumps({"model": "m"}), bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"heads\.json is not JSON"):
            HeadSet.load(path)


def test_head_sets_behind_links_and_in_folders(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    SET.save(target)
    link.symlink_to(target)
    assert HeadSet.load(link) == SET
    other = SET.model_copy(update={"name": "other"})
    other.save(link)
    assert not link.is_symlink(), "a link is replaced"
    assert (HeadSet.load(link), HeadSet.load(target)) == (other, SET)
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "dangling.json").symlink_to("nowhere.json")
    for path in ("loop.json", "dangling.json", ".", "no/such.json"):
        with pytest.raises(OSError, match=r"Errno|Too many|No such|Is a directory"):
            HeadSet.load(tmp_path / path)
    with pytest.raises(OSError, match="no such folder"):
        SET.save(tmp_path / "no" / "such.json")


def test_files_out_of_reach(retriever, powerless_file):
    with pytest.raises(PermissionError):
        HeadSet.load(powerless_file)
    with pytest.raises(PermissionError):
        SET.save(powerless_file)
    with pytest.raises(PermissionError):
        EncodedPassages.load(powerless_file, retriever)
    assert powerless_file.name in message_of("rank", "who", powerless_file, "--format", "txt")


@pytest.fixture
def powerless_file(tmp_path, request):
    path = tmp_path / "secret"
    path.write_text("{}")
    path.chmod(0)
    request.getfixturevalue("powerless")
    return path


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; make it first: '.*missing'"):
        SET.save(tmp_path / "missing" / "heads.json")


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "heads.json"
    SET.save(path)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:  # noqa: PT012
        file.write_text("half")
        raise KeyboardInterrupt
    assert HeadSet.load(path) == SET
    assert leftovers(tmp_path) == []


def test_a_file_keeps_its_mode_and_a_new_one_gets_the_usual_one(tmp_path, retriever):
    usual = tmp_path / "usual"
    usual.write_text("")
    SET.save(tmp_path / "heads.json")
    retriever.encode(DOCUMENTS).save(tmp_path / "list.safetensors")
    for name in ("heads.json", "list.safetensors"):
        assert (tmp_path / name).stat().st_mode == usual.stat().st_mode
        (tmp_path / name).chmod(0o600)
    SET.save(tmp_path / "heads.json")
    retriever.encode(DOCUMENTS).save(tmp_path / "list.safetensors")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("heads.json", "list.safetensors")} == {0o600}


def in_processes(work, check, until=PROCESSES):
    """Run `work(number)` in eight processes, and `check()` here for as long as one of them runs."""
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=work, args=(number,)) for number in range(until)]
    for process in running:
        process.start()
    while any(process.is_alive() for process in running):
        check()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * until
    check()


@pytest.mark.slow
def test_eight_processes_write_one_head_set_and_every_reader_sees_a_whole_one(tmp_path):
    path = tmp_path / "heads.json"
    sets = [SET.model_copy(update={"name": str(number), "note": "x" * 5_000 * number}) for number in range(PROCESSES)]
    sets[0].save(path)

    def work(number):
        for _ in range(15):
            sets[number].save(path)

    def check():
        heads = HeadSet.load(path)
        assert heads == sets[int(heads.name)]

    in_processes(work, check)
    assert leftovers(tmp_path) == []


# Encoded lists.


def regions(stored):
    """Places in a saved list that tell a damage from another: around every joint, and some of each part."""
    header = 8 + struct.unpack("<Q", stored[:8])[0]
    parts = json.loads(stored[8:header])
    joints = [0, 8, header, len(stored)]
    joints += [header + offset for name, part in parts.items() if name[0] != "_" for offset in part["data_offsets"]]
    offsets = {joint + step for joint in joints for step in (-1, 0, 1)}
    rng = random.Random(0)
    offsets |= {rng.randrange(0, header) for _ in range(80)} | {rng.randrange(header, len(stored)) for _ in range(40)}
    return sorted(offset for offset in offsets if 0 <= offset < len(stored))


def refused(path, content, retriever):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.safetensors") as caught:
        EncodedPassages.load(path, retriever)
    names_the_file(caught.value, path)


def test_a_list_cut_anywhere_is_refused(stored, retriever, tmp_path):
    for offset in regions(stored):
        refused(tmp_path / "list.safetensors", stored[:offset], retriever)
    refused(tmp_path / "list.safetensors", stored + b"\0", retriever)


def test_a_list_with_any_bit_flipped_is_refused(stored, retriever, tmp_path):
    rng = random.Random(1)
    for offset in regions(stored):
        flipped = bytearray(stored)
        flipped[offset] ^= 1 << rng.randrange(8)
        refused(tmp_path / "list.safetensors", bytes(flipped), retriever)


def replace(name, change):
    return lambda identity, content, tensors: (identity, content, tensors | {name: change(tensors[name])})


def without(name):
    return lambda identity, content, tensors: (identity, content, {k: v for k, v in tensors.items() if k != name})


def pieces(change):
    return lambda i, content, t: (i, content | {"document_of_piece": change(content["document_of_piece"])}, t)


def passages(change):
    return lambda i, content, t: (i, content | {"passages": change(content["passages"])}, t)


FORGERIES = {
    "keys of float32": replace("keys", lambda keys: keys.float()),
    "keys of whole numbers": replace("keys", lambda keys: keys.to(torch.int8)),
    "complex keys": replace("keys", lambda keys: keys.to(torch.complex64)),
    "keys transposed": replace("keys", lambda keys: keys.transpose(0, 1)),
    "keys of one dimension": replace("keys", lambda keys: keys.reshape(-1)),
    "keys of no dimension": replace("keys", lambda keys: keys.sum()),
    "keys of three dimensions": replace("keys", lambda keys: keys[None]),
    "keys of fewer tokens": replace("keys", lambda keys: keys[:-1]),
    "keys of more heads": replace("keys", lambda keys: torch.cat([keys, keys], dim=1)),
    "keys of smaller heads": replace("keys", lambda keys: keys[:, :-1]),
    "no keys": without("keys"),
    "keys of another format": lambda i, c, t: (i, c, t | {"keys.3": t["keys"].clone()}),
    "no opening": without("opening"),
    "no pieces of tokens": without("piece_of"),
    "a negative piece": replace("piece_of", lambda value: value - 1),
    "a piece of two billion": replace("piece_of", lambda value: value.index_fill(0, torch.tensor([0]), 2**31 - 1)),
    "pieces in disorder": replace("piece_of", lambda value: value.flip(0)),
    "pieces of floats": replace("piece_of", lambda value: value.float()),
    "pieces of no dimension": replace("piece_of", lambda value: value[0]),
    "pieces of two dimensions": replace("piece_of", lambda value: value[:, None]),
    "no tokens at all": lambda i, c, t: (
        i,
        c,
        {n: x if n == "opening" else x[:0] for n, x in t.items()},
    ),
    "offsets of three": replace("offsets", lambda value: torch.cat([value, value[:, :1]], dim=1)),
    "offsets of one dimension": replace("offsets", lambda value: value[:, 0]),
    "negative offsets": replace("offsets", lambda value: value - 3),
    "offsets backwards": replace("offsets", lambda value: value.flip(1)),
    "offsets beyond the text": replace("offsets", lambda value: value + 1_000),
    "negative documents": pieces(lambda value: [-1, *value[1:]]),
    "documents as floats": pieces(lambda value: [float(document) for document in value]),
    "documents as truths": pieces(lambda value: [bool(document) for document in value]),
    "documents as text": pieces(lambda value: [str(document) for document in value]),
    "documents nested": pieces(lambda value: [value]),
    "documents as nothing": pieces(lambda value: None),
    "documents as a number": pieces(lambda value: 3),
    "documents in disorder": pieces(lambda value: value[::-1]),
    "one document too many": pieces(lambda value: [*value, value[-1] + 1]),
    "one document too few": pieces(lambda value: value[:-1]),
    "a blank document with a piece": pieces(lambda value: [2 if document == 3 else document for document in value]),
    "one passage less": passages(lambda value: value[:-1]),
    "passages as an object": passages(lambda value: {"text": "a"}),
    "passages as text": passages(lambda value: "abc"),
    "passages as nothing": passages(lambda value: None),
    "a passage with no text": passages(lambda value: [{"title": "a"}, *value[1:]]),
    "a passage with more than there is": passages(lambda value: [value[0] | {"pickle": 1}, *value[1:]]),
    "a shorter passage": passages(lambda value: [{"text": "T"}, *value[1:]]),
    "identity as a list": lambda i, c, t: ([1, 2], c, t),
    "identity as nothing": lambda i, c, t: (None, c, t),
    "content as a list": lambda i, c, t: (i, [1], t),
    "content as nothing": lambda i, c, t: (i, None, t),
    "another model": lambda i, c, t: (i | {"model": "other/model"}, c, t),
    "another shape": lambda i, c, t: (i | {"shape": ["llama", 9, 9]}, c, t),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_whole_file_with_wrong_things_in_it_is_refused(stored, retriever, tmp_path, forge):
    """The checksum is right: only what the file says is not."""
    path = tmp_path / "list.safetensors"
    path.write_bytes(stored)
    identity = store_of(retriever).context.file_identity()
    write_encoded(path, *forge(identity, *read_encoded(path, identity)))
    with pytest.raises(ValueError, match=r"list\.safetensors"):
        EncodedPassages.load(path, retriever)


def test_a_header_that_is_a_bomb(stored, retriever, tmp_path):
    path = tmp_path / "list.safetensors"
    path.write_bytes(stored)
    with safe_open(path, framework="pt") as whole:
        metadata = whole.metadata()
    tensors = load_file(path)
    for bomb in BOMBS.values():
        save_file(tensors, path, metadata | {"header": bomb})
        with pytest.raises(ValueError, match=r"list\.safetensors"):
            EncodedPassages.load(path, retriever)


def test_keys_that_are_not_finite_are_an_error(stored, retriever, tmp_path):
    path = tmp_path / "list.safetensors"
    path.write_bytes(stored)
    identity = store_of(retriever).context.file_identity()
    content, tensors = read_encoded(path, identity)
    tensors["keys"][:, -1] = torch.nan  # of the last layer
    write_encoded(path, identity, content, tensors)
    with pytest.raises(FloatingPointError, match=r"layer 2, head 2 to document \d is not finite"):
        EncodedPassages.load(path, retriever).score(QUERY)


def test_a_file_cut_off_while_its_list_is_in_use(stored, retriever, scores, tmp_path):
    """The tensors are no view of the file: that would end the process with a bus error."""
    path = tmp_path / "list.safetensors"
    path.write_bytes(stored)
    loaded = EncodedPassages.load(path, retriever)
    os.truncate(path, 0)
    assert loaded.score(QUERY) == pytest.approx(scores, abs=1e-5)


def test_lists_behind_links_and_in_folders(stored, retriever, scores, tmp_path):
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    target.write_bytes(stored)
    link.symlink_to(target)
    assert EncodedPassages.load(link, retriever).score(QUERY) == pytest.approx(scores, abs=1e-5)
    retriever.encode(["other"]).save(link)
    assert not link.is_symlink()
    assert target.read_bytes() == stored
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=path.name):
            EncodedPassages.load(path, retriever)


@pytest.mark.slow
def test_eight_processes_write_one_list_and_every_reader_sees_a_whole_one(retriever, tmp_path):
    path = tmp_path / "list.safetensors"
    identity = store_of(retriever).context.file_identity()
    retriever.encode(DOCUMENTS).save(path)
    content, tensors = read_encoded(path, identity)

    def work(number):
        content["passages"][1]["metadata"] = {"page": number, "notes": "x" * 1000 * number}
        for _ in range(10):
            write_encoded(path, identity, content, tensors)

    def check():
        page = list(EncodedPassages.load(path, retriever))[1].metadata
        assert len(page.get("notes", "")) == (page["page"] * 1000 if "notes" in page else 0)

    in_processes(work, check)
    assert leftovers(tmp_path) == []


def test_an_interrupted_save_of_a_list_leaves_the_old_one(stored, retriever, tmp_path, monkeypatch):
    path = tmp_path / "list.safetensors"
    path.write_bytes(stored)

    def interrupted(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("qrhead_rag.ranking.tensor_file.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retriever.encode(DOCUMENTS).save(path)
    assert path.read_bytes() == stored
    assert leftovers(tmp_path) == []


# Recorded scores.

EXAMPLES = [
    LabelledExample(query="Who counts?", documents=[Passage(text=text) for text in texts], relevant=(0,))
    for texts in (["The keeper counts.", "Nobody", "A third"], ["One", "Two"])
]


@pytest.fixture(scope="module")
def every_head():
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads="all", cache_bytes=0)


def recorded(retriever, folder):
    return [scores for _, scores in record(retriever, EXAMPLES, folder)]


RECORDS = {
    "cut": lambda path, whole: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path, whole: path.write_bytes(b""),
    "a pickle": lambda path, whole: path.write_bytes(pickle.dumps({"scores": 1})),
    "other names": lambda path, whole: save_file({"values": whole}, path),
    "a head less": lambda path, whole: save_file({"scores": whole[1:].contiguous()}, path),
    "a document less": lambda path, whole: save_file({"scores": whole[:, 1:].contiguous()}, path),
    "one dimension": lambda path, whole: save_file({"scores": whole.reshape(-1)}, path),
    "whole numbers": lambda path, whole: save_file({"scores": whole.to(torch.int8)}, path),
    "complex numbers": lambda path, whole: save_file({"scores": whole.to(torch.complex64)}, path),
    "NaN": lambda path, whole: save_file({"scores": whole * torch.nan}, path),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.slow
def test_damaged_recordings_are_made_again(every_head, tmp_path, damage):
    recording = record(every_head, EXAMPLES, tmp_path)
    whole = [scores for _, scores in recording]
    for file, scores in zip(recording.files, whole, strict=True):
        damage(file, scores)
    for scores, expected in zip(recorded(every_head, tmp_path), whole, strict=True):
        torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_a_recording_that_is_in_the_way_or_out_of_reach(every_head, tmp_path):
    whole = recorded(every_head, tmp_path)
    link = sorted(tmp_path.iterdir())[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link.rename(elsewhere / link.name)
    link.symlink_to(elsewhere / "nowhere")
    assert all(map(torch.equal, recorded(every_head, tmp_path), whole)), "a dangling link is replaced"
    link.unlink()
    link.mkdir()
    with pytest.raises(OSError, match=link.name):
        record(every_head, EXAMPLES, tmp_path)


@pytest.mark.slow
def test_eight_processes_record_into_one_folder(every_head, tmp_path):
    whole = recorded(every_head, tmp_path / "alone")

    def check():
        for file in tmp_path.glob("together/*.safetensors"):
            assert load_file(file)["scores"].shape[0] == 16

    in_processes(lambda number: recorded(every_head, tmp_path / "together"), check)
    assert all(map(torch.equal, recorded(every_head, tmp_path / "together"), whole))
    assert len(list((tmp_path / "together").iterdir())) == len(EXAMPLES)


# The cache of the embedded model. What is converted is a stand-in.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder with a converted model in it, and the marks of every conversion."""
    marks = tmp_path / "marks"
    marks.write_text("")

    def convert(source, building):
        with marks.open("a") as file:
            file.write("x")
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            (building / name).write_bytes(name.encode() * 99)

    monkeypatch.setattr(embedded_model, "_convert", convert)
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    (tmp_path / "cache").mkdir()
    return embedded_model.converted(Path("Small.gguf")), marks


def a_link_to_a_damaged_copy(folder):
    copy = folder.with_name("elsewhere")
    folder.rename(copy)
    (copy / "config.json").write_text("{}")
    folder.symlink_to(copy)


def a_file(folder):
    embedded_model._remove(folder)
    folder.write_text("in the way")


def manifest(text):
    return lambda folder: (folder / "checksums.json").write_text(text)


CACHES = {
    "a link to a damaged copy": a_link_to_a_damaged_copy,
    "a link to nowhere": lambda folder: (embedded_model._remove(folder), folder.symlink_to("nowhere")),
    "a link to itself": lambda folder: (embedded_model._remove(folder), folder.symlink_to(folder.name)),
    "a file": a_file,
    "an empty folder": lambda folder: (embedded_model._remove(folder), folder.mkdir()),
    "a nested manifest": manifest("[" * 200_000),
    "a manifest of numbers": manifest('{"model.safetensors": 3}'),
    "a manifest of nothing": manifest("null"),
    "a manifest that leads out": manifest('{"model.safetensors": "", "../../../../etc/passwd": ""}'),
    "a manifest of no text": lambda folder: (folder / "checksums.json").write_bytes(b"\xff\xfe"),
    "weights replaced by a folder": lambda folder: (
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", CACHES.values(), ids=CACHES.keys())
def test_a_model_cache_that_is_something_else_is_rebuilt(cache, damage):
    folder, marks = cache
    damage(folder)
    assert embedded_model.converted(Path("Small.gguf")) == folder
    assert embedded_model._is_whole(folder)
    assert not folder.is_symlink()
    assert marks.read_text() == "xx"


def test_a_link_to_a_whole_copy_is_used(cache):
    folder, marks = cache
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    assert embedded_model.converted(Path("Small.gguf")) == folder
    assert marks.read_text() == "x"


def test_what_killed_conversions_left_goes_with_the_next(cache):
    folder, _ = cache
    left = folder.with_name(f"{folder.name}.ab12cd_9")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (folder / "config.json").unlink()
    embedded_model.converted(Path("Small.gguf"))
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_cache_out_of_reach_is_an_error_with_its_name(cache, powerless):
    with pytest.raises(PermissionError, match="cache"):
        embedded_model.converted(Path("Other.gguf"))


@pytest.mark.slow
def test_eight_processes_mend_one_cache_once(cache):
    folder, marks = cache
    (folder / "config.json").unlink()
    in_processes(lambda number: embedded_model.converted(Path("Small.gguf")), lambda: None)
    assert embedded_model._is_whole(folder)
    assert marks.read_text() == "xx"


# Models in folders.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


MODEL_FILES = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
DAMAGES = [(name, content) for name in MODEL_FILES for content in ("half", "nothing", "nested", "pickle")]
DAMAGES += [(name, "empty object") for name in MODEL_FILES[:3]]  # the last one then says nothing but the defaults


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_model_folder_is_an_error_with_its_name(folder, tmp_path, name, content):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    whole = (copy / name).read_bytes()
    damaged = {"half": whole[: len(whole) // 2], "nothing": b"", "nested": b"[" * 200_000, "pickle": pickle.dumps(1)}
    damaged["empty object"] = b"{}"
    (copy / name).write_bytes(damaged[content])
    with pytest.raises((OSError, ValueError), match="model"):
        QRRetriever.from_pretrained(copy, heads=HEADS, device="cpu")


class Mine:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickled_checkpoint_is_refused_and_never_opened(folder, tmp_path):
    copy, mark = tmp_path / "model", tmp_path / "mark"
    copy.mkdir()
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Mine(mark)))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        QRRetriever.from_pretrained(copy, heads=HEADS, device="cpu")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        loading.load_generator(copy, device="cpu")
    assert not mark.exists()


UNPICKLERS = {"torch.load", "numpy.load", "np.load", "joblib", "dill", "marshal", "shelve", "eval", "exec"}


def test_nothing_in_the_package_unpickles():
    root = Path(qrhead_rag.__file__).parent
    unpicklers = []
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            unpicklers += [f"{file.name}: {name}" for name in names if name in UNPICKLERS or "pickle" in name]
    assert unpicklers == []


# Labelled data and passages, as a program and from the shell.

RECORD = {
    "beir": None,
    "clipper": None,
    "jsonl": {"query": "who", "documents": ["a", "b"], "relevant": [0]},
    "hotpotqa": {
        "_id": "1",
        "question": "who",
        "context": [["A", ["a."]], ["B", ["b."]]],
        "supporting_facts": [["A", 0]],
    },
    "musique": {
        "id": "1",
        "question": "who",
        "paragraphs": [{"idx": 0, "title": "A", "paragraph_text": "a", "is_supporting": True}],
    },
    "qrhead": {
        "idx": 1,
        "question": "who",
        "paragraphs": [{"idx": 0, "title": "A", "paragraph_text": "a"}],
        "gt_docs": [0],
    },
    "dpr": {
        "question": "who",
        "answers": ["a"],
        "ctxs": [{"id": "1", "title": "A", "text": "a", "has_answer": True}, {"id": "2", "text": "b"}],
    },
    "longmemeval": {
        "question_id": "1",
        "question_type": "t",
        "question": "who",
        "answer": "a",
        "haystack_dates": ["d"],
        "haystack_session_ids": ["s"],
        "haystack_sessions": [[{"role": "user", "content": "a", "has_answer": True}]],
        "answer_session_ids": ["s"],
    },
    "locomo": {
        "sample_id": "c",
        "conversation": {
            "session_1": [{"speaker": "A", "dia_id": "D1:1", "text": "a"}],
            "session_1_date_time": "d",
        },
        "qa": [{"question": "who", "answer": "a", "evidence": ["D1:1"], "category": 1}],
    },
}
FORMATS = [name for name, record in RECORD.items() if record]


def test_every_reader_is_tried():
    assert set(RECORD) == set(READERS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_records_that_are_spoiled_below_are_whole(tmp_path, name):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(RECORD[name]) + "\n")
    assert len(load_examples(path, format=name)) == 1


def key_paths(value):
    """Every place in a JSON value, as the keys that lead there."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        for key_path in key_paths(part):
            yield (key, *key_path)


def with_value(value, key_path, new):
    if not key_path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key_path[0]] = with_value(copy[key_path[0]], key_path[1:], new)
    return copy


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.slow
def test_any_value_anywhere_in_a_record_is_read_or_reported(tmp_path, name):
    """Whatever stands in a record, the reader gives an example or says which line is wrong."""
    key_paths_of_record = [key_path for key_path in key_paths(RECORD[name]) if key_path]

    @fast
    @given(key_path=st.sampled_from(key_paths_of_record), value=json_values)
    def spoiled(key_path, value):
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(with_value(RECORD[name], key_path, value)) + "\n", encoding="utf-8")
        try:
            load_examples(path, format=name)
        except ValueError as error:
            names_the_file(error, path)

    spoiled()


@pytest.mark.parametrize("name", [*FORMATS, None])
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_data_that_is_a_bomb(tmp_path, name, text):
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.jsonl"):
        load_examples(path, format=name)


def test_spans_of_chapters_and_numbers_of_sessions_that_are_bombs(tmp_path):
    book = tmp_path / "clipper" / "books" / "b"
    book.mkdir(parents=True)
    (book / "1.txt").write_text("one")
    (book / "²x.txt").write_text("two")
    claims = tmp_path / "clipper" / "claims"
    claims.mkdir()
    for source in ("Chapters 1-99999999999", "Chapter " + "9" * 5000):
        (claims / "b.csv").write_text(f'facts,corrupted_facts,source\nf,c,"{source}"\n')
        with pytest.raises(ValueError, match=r"b\.csv:2"):
            load_examples(tmp_path / "clipper")
    (book / "²").with_suffix(".txt").write_text("no number")
    (claims / "b.csv").write_text("facts,corrupted_facts,source\nf,c,Chapter 1\n")
    assert len(load_examples(tmp_path / "clipper")) == 1
    odd = RECORD["locomo"] | {"conversation": RECORD["locomo"]["conversation"] | {"session_01": []}}
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(odd))
    assert len(load_examples(path, format="locomo")) == 1


# The command.


def message_of(*arguments, stdin=None):
    """The one line that the command says of bad input."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("qrhead: ")]
    assert len(lines) == 1
    assert len(lines[0]) < 2000
    return result.stderr


JSON_LINES = {name: text for name, text in BOMBS.items() if text} | {
    "a surrogate in a name": '{"text": 3, "\\ud800": 1}',
    "text of a million digits": '{"text": ' + "1" * 1_000_000 + "}",
}


@pytest.mark.parametrize("text", JSON_LINES.values(), ids=JSON_LINES.keys())
def test_passages_that_are_bombs(tmp_path, text):
    path = tmp_path / "passages.jsonl"
    path.write_text(text, encoding="utf-8")
    assert "passages.jsonl:1: " in message_of("rank", "who", path) or text == "\ufeff{}"
    assert "stdin:1: " in message_of("rank", "who", "-", "--format", "jsonl", stdin=text) or text == "\ufeff{}"


def test_passages_that_are_no_file(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for path in (tmp_path / "loop.txt", tmp_path / "none.txt"):
        assert path.name in message_of("rank", "who", path, "--format", "txt")
    assert "unknown kind of file" in message_of("rank", "who", tmp_path)
    assert "directory" in message_of("rank", "who", tmp_path, "--format", "txt")


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_head_sets_that_are_bombs_are_one_line_of_the_command(folder, tmp_path, text):
    path, passages = tmp_path / "heads.json", tmp_path / "passages.txt"
    path.write_text(text, encoding="utf-8")
    passages.write_text("a")
    assert "heads.json is not" in message_of("rank", "who", passages, "--model", folder, "--heads", path)


@pytest.mark.parametrize("command", ["detect", "evaluate"])
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_data_that_is_a_bomb_is_one_line_of_the_command(tmp_path, command, text):
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    assert "data.jsonl" in message_of(command, path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_model_is_one_line_of_the_command(folder, tmp_path, name):
    copy, passages = tmp_path / "model", tmp_path / "passages.txt"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / name).write_bytes((copy / name).read_bytes()[:-9])
    passages.write_text("a")
    assert "model" in message_of("rank", "who", passages, "--model", copy, "--heads", "1-0", "--device", "cpu")
