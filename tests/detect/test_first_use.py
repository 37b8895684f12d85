"""A model without a shipped head set finds its heads at first use, once for all processes, and keeps them."""

import contextlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain_core.documents import Document
from langchain_qrhead import QRHeadReranker as DocumentReranker
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadReranker as NodeReranker

import qrhead_rag.ranking.retriever as retriever_module
from qrhead_rag import QRRetriever
from qrhead_rag.detect import finding, first_use
from qrhead_rag.detect.finding import NoHeadsError
from qrhead_rag.detect.made import make_examples
from tests.helpers.alone import ROOT
from tests.helpers.synonyms import KNOWING, synonym_corpus, synonym_model
from tests.helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

SUBJECTS = 24
CORPUS = synonym_corpus(SUBJECTS)
FINDS = "no head set is shipped for .*: its heads are found now, on 24 questions of the package"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model on disk that knows meanings, an empty cache, and a set of questions in its words."""
    model, tokenizer = synonym_model(SUBJECTS)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        first_use, "load_encyclopedia", lambda **less: make_examples(CORPUS, candidates=8)[: 20 if less else 24]
    )
    return tmp_path / "model"


@pytest.fixture
def runs(monkeypatch):
    """How often heads are looked for."""
    counted = []
    detect = finding.detect
    monkeypatch.setattr(finding, "detect", lambda *args, **kwargs: counted.append(args) or detect(*args, **kwargs))
    return counted


def test_heads_are_found_once_and_read_from_the_cache_then(folder, runs):
    with pytest.warns(UserWarning, match=FINDS):
        retriever = QRRetriever.from_pretrained(folder)
    assert set(retriever.heads.heads) == set(KNOWING)
    assert retriever.mode == "late"
    assert "on 24 questions of the package" in retriever.heads.note
    assert runs
    runs.clear()
    again = QRRetriever.from_pretrained(folder)
    assert not runs
    assert again.heads == retriever.heads
    assert again.model.config.num_hidden_layers == 2  # nothing above the heads is loaded
    assert again.rank("A7x1 A7x3 A7x2", CORPUS[4:10])[0].index == 3


def test_a_large_model_has_half_of_the_questions(folder, monkeypatch):
    monkeypatch.setattr(first_use, "_LARGE", 1)
    with pytest.warns(UserWarning, match="its heads are found now, on 20 questions of the package"):
        retriever = QRRetriever.from_pretrained(folder, readout="evidence")  # the sample for another would be too small
    assert set(retriever.heads.heads) == set(KNOWING)
    assert "on 20 questions of the package" in retriever.heads.note


def test_a_model_in_memory_finds_its_own_and_is_left_as_it_was(folder, runs):
    model, tokenizer = synonym_model(SUBJECTS)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.warns(UserWarning, match=FINDS):
        retriever = QRRetriever(model, tokenizer)
    assert set(retriever.heads.heads) == set(KNOWING)
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())
    runs.clear()
    QRRetriever(model, tokenizer)
    assert not runs


def test_other_weights_of_the_same_name_find_theirs(folder, runs):
    with pytest.warns(UserWarning, match=FINDS):
        QRRetriever.from_pretrained(folder)
    model, _ = synonym_model(SUBJECTS)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.5
    model.save_pretrained(folder)
    runs.clear()
    with pytest.warns(UserWarning, match=FINDS):
        QRRetriever.from_pretrained(folder)
    assert runs


def test_a_model_of_another_shape_in_the_same_folder_finds_its_own(folder):
    with pytest.warns(UserWarning, match=FINDS):
        QRRetriever.from_pretrained(folder)
    shutil.rmtree(folder)
    save_tiny(folder)
    with pytest.warns(UserWarning, match=FINDS), contextlib.suppress(NoHeadsError):
        QRRetriever.from_pretrained(folder)


def test_a_model_that_is_not_there_is_looked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    asked, load = [], retriever_module.load_model
    monkeypatch.setattr(
        retriever_module, "load_model", lambda *args, **kwargs: asked.append(args) or load(*args, **kwargs)
    )
    with pytest.raises(OSError, match="absent"):
        QRRetriever.from_pretrained(tmp_path / "absent")
    assert len(asked) == 1


def test_mode_and_readout_have_their_own(folder, tmp_path):
    for options in ({}, {"mode": "independent"}, {"readout": "published"}):
        with pytest.warns(UserWarning, match=FINDS):
            retriever = QRRetriever.from_pretrained(folder, **options)
        assert retriever.mode == options.get("mode", "late")
        if "readout" in options:
            assert retriever.readout == retriever.heads.readout == "published"
    assert len(list((tmp_path / "cache" / "heads").glob("*.json"))) == 3


def test_a_damaged_file_is_written_anew(folder, tmp_path, runs):
    with pytest.warns(UserWarning, match=FINDS):
        QRRetriever.from_pretrained(folder)
    (file,) = (tmp_path / "cache" / "heads").glob("*.json")
    whole = file.read_text("utf-8")
    for damaged in (whole[:100], json.dumps({"fingerprint": "x"})):
        file.write_text(damaged, "utf-8")
        with pytest.warns(UserWarning, match=FINDS):
            QRRetriever.from_pretrained(folder)
        assert file.read_text("utf-8") == whole


def test_a_cache_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="found at every start"), pytest.warns(UserWarning, match=FINDS):
        retriever = QRRetriever.from_pretrained(folder)
    assert set(retriever.heads.heads) == set(KNOWING)


def test_threads_that_start_together_find_them_once(folder, runs):
    with pytest.warns(UserWarning, match=FINDS), ThreadPoolExecutor(3) as pool:
        retrievers = list(pool.map(lambda _: QRRetriever.from_pretrained(folder), range(3)))
    assert {retriever.heads for retriever in retrievers} == {retrievers[0].heads}
    assert len(runs) <= 6  # of one finding: two readouts on a sample, one on all, perhaps for another number of heads


def test_processes_that_start_together_find_them_once(folder, tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        "import sys, warnings\n"
        "from qrhead_rag import QRRetriever\n"
        "from qrhead_rag.detect import first_use\n"
        "from qrhead_rag.detect.made import make_examples\n"
        "from tests.detect.test_first_use import CORPUS\n"
        "first_use.load_encyclopedia = lambda **less: make_examples(CORPUS, candidates=8)[: 20 if less else 24]\n"
        "with warnings.catch_warnings(record=True) as warned:\n"
        "    warnings.simplefilter('always')\n"
        "    QRRetriever.from_pretrained(sys.argv[1])\n"
        "print(sum('are found now' in str(warning.message) for warning in warned))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, script, folder], stdout=subprocess.PIPE, text=True, env=_environment(tmp_path)
        )
        for _ in range(2)
    ]
    assert sorted(int(process.communicate()[0]) for process in processes) == [0, 1]


def _environment(tmp_path):
    return {**os.environ, "PYTHONPATH": str(ROOT), "QRHEAD_CACHE": str(tmp_path / "cache")}


def test_a_model_without_such_heads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("QRHEAD_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)  # of which passage is right: nothing tells it
    examples = [
        example.model_copy(update={"relevant": (draw.randrange(8),)}) for example in make_examples(CORPUS, candidates=8)
    ]
    monkeypatch.setattr(first_use, "load_encyclopedia", lambda **less: examples)
    with pytest.warns(UserWarning, match=FINDS), pytest.raises(NoHeadsError, match="all heads together"):
        QRRetriever(tiny_model(), tiny_tokenizer())
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_shipped_refuses_instead(tmp_path):
    save_tiny(tmp_path)
    for make in (
        lambda: QRRetriever.from_pretrained(tmp_path, heads="shipped"),
        lambda: QRRetriever(tiny_model(), tiny_tokenizer(), heads="shipped"),
        lambda: NodeReranker(model=str(tmp_path), heads="shipped").load_scorer(),
        lambda: DocumentReranker(model=str(tmp_path), heads="shipped").load_scorer(),
    ):
        with pytest.raises(ValueError, match="no head set is shipped for"):
            make()


def test_both_frameworks_find_heads_by_themselves(folder):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in CORPUS[4:10]]
    with pytest.warns(UserWarning, match=FINDS):
        (best,) = NodeReranker(model=str(folder), top_n=1).postprocess_nodes(nodes, query_str="A7x1 A7x3 A7x2")
    assert best.node.text == CORPUS[7]
    reranker = DocumentReranker(model=str(folder), top_n=1)
    documents = [Document(page_content=text) for text in CORPUS[4:10]]
    assert reranker.compress_documents(documents, "A7x1 A7x3 A7x2")[0].page_content == CORPUS[7]
    assert reranker.model_copy().heads is None  # found again by name, from the cache


def test_a_reranker_finds_heads_in_a_corpus(folder):
    with pytest.warns(UserWarning, match=FINDS):
        former = QRRetriever.from_pretrained(folder)
    nodes = [TextNode(text=text) for text in CORPUS]
    documents = [Document(page_content=text) for text in CORPUS]
    for reranker, corpus in ((NodeReranker, nodes), (DocumentReranker, documents)):
        better = reranker(model=str(folder), heads=former.heads, top_n=2).find_heads(corpus)
        assert set(better.heads.heads) == set(KNOWING)
        assert better.top_n == 2
        assert "heads 'found' 1.000" in better.heads.note
        again = pickle.loads(pickle.dumps(better))
        assert again.load_scorer().heads == better.heads
        in_memory = reranker(scorer=QRRetriever(*synonym_model(SUBJECTS), heads="all")).find_heads(corpus)
        assert set(in_memory.load_scorer().heads.heads) == set(KNOWING)
