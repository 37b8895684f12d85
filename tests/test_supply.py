"""What the package may fetch and run: nothing from the network for the embedded model, no code of a model unasked."""

import ast
import json
import os
import subprocess
import sys

import pytest
from langchain_qrhead import QRHeadMemoryMiddleware, trim_messages_by_relevance
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import QRRetriever
from qrhead_rag.evaluate.embedding import EmbeddingModel
from qrhead_rag.models.loading import load_generator
from tests.helpers.alone import ROOT
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

# The hook sees and refuses every connection and every look-up of a name, also one whose failure is passed over.
FORBID = """
import sys
TRIED = []
def forbid(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") or event.startswith("socket.get"):
        TRIED.append(f"{event} {arguments[-1]}")
        raise OSError(f"the network is forbidden: {event}")
sys.addaudithook(forbid)
"""
# Deprecations are warned of or logged, and logs may be turned off meanwhile.
LISTEN = """
import logging, warnings
DEPRECATED = []
for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
    warnings.simplefilter("always", kind)
warnings.showwarning = lambda message, kind, file, line, *_: DEPRECATED.append(f"{kind.__name__}: {message} ({file}:{line})")
def listening(self, message, *arguments, warn=logging.Logger.warning, **options):
    if "deprecat" in str(message):
        DEPRECATED.append(f"{self.name}: {message}")
    warn(self, message, *arguments, **options)
logging.Logger.warning = listening
"""
USE = """
import asyncio, json
from langchain_core.documents import Document
from langchain_qrhead import QRHeadReranker as LangChainReranker, trim_messages_by_relevance
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadMemory, QRHeadReranker as LlamaIndexReranker
from qrhead_rag import QRRetriever

texts = ["The ferry leaves at nine.", "The library lends maps for a week.", "Keys hang behind the door."]
query = "How long may I borrow a map?"
best = {}
for mode in MODES:
    best[mode] = QRRetriever.from_pretrained(mode=mode).rank(query, texts)[0].index
documents = [Document(text, id=str(place)) for place, text in enumerate(texts)]
compressor = LangChainReranker()
best["LangChain"] = compressor.compress_documents(documents, query)[0].id
best["LangChain async"] = asyncio.run(compressor.acompress_documents(documents, query))[0].id
nodes = [NodeWithScore(node=TextNode(text=text, id_=str(place))) for place, text in enumerate(texts)]
best["LlamaIndex"] = LlamaIndexReranker().postprocess_nodes(nodes, query_str=query)[0].node_id
turns = [(role, text) for text in texts for role, text in (("user", text), ("assistant", "Noted."))]
kept = trim_messages_by_relevance([*turns, ("user", query)], max_tokens=36, token_counter="approximate", keep_last=1)
best["messages"] = [message.text for message in kept]
memory = QRHeadMemory.from_defaults(token_limit=30, keep_last=1)
memory.put_messages([ChatMessage(role=role, content=text) for role, text in [*turns, ("user", query)]])
best["memory"] = [message.content for message in memory.get()]
print(json.dumps({"best": best, "tried": TRIED, "deprecated": DEPRECATED}))
"""


def run(code, **environment):
    free = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=free | environment, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """Both frameworks on the embedded model, with an empty cache and no setting that says offline."""
    folder = tmp_path_factory.mktemp("home")
    folders = {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    result = run(f"MODES = {MODES!r}" + FORBID + LISTEN + USE, **folders)
    assert result.returncode == 0, result.stderr
    assert list((folder / "cache" / "qrhead-rag").glob("*/model.safetensors"))
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.embedded
def test_the_embedded_model_works_in_every_mode_and_framework_without_network(first_use):
    best = dict(first_use["best"])
    for texts in (best.pop("messages"), best.pop("memory")):
        assert any("lends maps" in text for text in texts)
        assert len(texts) < 7
    assert set(map(str, best.values())) == {"1"}


@pytest.mark.embedded
def test_the_embedded_model_asks_for_no_network_from_its_first_use_on(first_use):
    assert first_use["tried"] == []


@pytest.mark.embedded
def test_nothing_deprecated_is_called(first_use):
    assert first_use["deprecated"] == []


@pytest.mark.parametrize(
    "use",
    [
        "import warnings; warnings.warn('old', FutureWarning)",
        "import logging; logging.getLogger('transformers').warning('`x` is deprecated')",
        "import transformers; transformers.utils.logging.set_verbosity_error();"
        "transformers.utils.logging.get_logger('transformers.x').warning_once('`x` is deprecated')",
    ],
)
@pytest.mark.slow
def test_a_deprecation_is_heard(use):
    assert run(f"{LISTEN}\n{use}\nprint(len(DEPRECATED))").stdout == "1\n"


@pytest.mark.parametrize(
    "use",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "import httpx; httpx.get('http://127.0.0.1:9')",
        "from huggingface_hub import model_info; model_info('a/b')",
    ],
)
@pytest.mark.slow
def test_the_network_is_forbidden_indeed(use):
    result = run(f"{FORBID}\ntry:\n    {use}\nexcept Exception as error:\n    print(len(TRIED), error)")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 0


BROUGHT = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

open({mark!r}, "w").close()

class Config(LlamaConfig):
    model_type = "brought"

class Model(LlamaModel):
    config_class = Config

class Writer(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def folder_with_code(tmp_path):
    """A model whose folder brings code that leaves a mark when it runs."""
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Writer"}
    config |= {"model_type": "brought", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    mark = tmp_path / "mark"
    (folder / "code.py").write_text(BROUGHT.format(mark=str(mark)), "utf-8")
    return folder, mark


def history():
    return [("user", "a ship"), ("assistant", "a lamp"), ("user", "which ship")] * 3


LOADERS = {
    "core": lambda folder, **options: QRRetriever.from_pretrained(folder, heads=[(1, 0)], **options),
    "generator": lambda folder, **options: load_generator(folder, **options),
    "LangChain reranker": lambda folder, **options: LangChainReranker(
        model=folder, heads=[(1, 0)], options=options
    ).load_scorer(),
    "LangChain messages": lambda folder, **options: trim_messages_by_relevance(
        history(),
        max_tokens=40,
        token_counter=lambda messages: 10 * len(messages),
        scorer=QRHeadMemoryMiddleware(max_tokens=40, model=folder, heads=[(1, 0)], options=options)._scorer,
    ),
    "LlamaIndex reranker": lambda folder, **options: LlamaIndexReranker(
        model=folder, heads=[(1, 0)], options=options
    ).load_scorer(),
    "LlamaIndex memory": lambda folder, **options: QRHeadMemory.from_defaults(
        model=folder, heads=[(1, 0)], options=options
    ).load_scorer(),
    "embedding model": lambda folder: EmbeddingModel(folder),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_model_does_not_run_unasked(folder_with_code, loader):
    folder, mark = folder_with_code
    with pytest.raises(ValueError, match="trust_remote_code"):
        LOADERS[loader](str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("loader", LOADERS.keys() - {"embedding model"})
def test_code_of_a_model_runs_where_it_is_asked_for(folder_with_code, loader, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = folder_with_code
    LOADERS[loader](str(folder), trust_remote_code=True)
    assert mark.exists()


def test_no_file_trusts_the_code_of_a_model():
    """The option is passed on as it is given, or False; never True of our own accord."""
    for folder in (ROOT / "qrhead_rag", ROOT / "integrations"):
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert ast.unparse(node.value) in ("trust_remote_code", "False"), file
