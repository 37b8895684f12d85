"""The README's examples run as written and print what it shows; its tables name every option and every head set."""

import contextlib
import inspect
import io
import re

import pytest
from langchain_core.documents import BaseDocumentCompressor
from langchain_qrhead import QRHeadMemoryMiddleware, trim_messages_by_relevance
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.memory import Memory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import QRRetriever
from qrhead_rag.core.heads import EMBEDDED_MODEL, shipped_head_sets
from tests.helpers.alone import ROOT
from tests.helpers.outputs import assert_same_output

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    assert f"\n## {title}\n" in README
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    """Cells of the tables of a section."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.embedded
def test_the_examples_print_what_the_readme_shows():
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert len(pairs) == README.count("```python") == 5
    for code, output in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {})
        assert_same_output(printed.getvalue(), output)


def test_an_output_with_another_number_or_word_is_seen():
    assert_same_output("0.417 Ferry 12\n-0.03 Tea 3\n", "0.418 Ferry 12\n-0.03 Tea 3\n")
    for other in ("0.437 Ferry 12", "0.417 Ferry 13", "0.417 Fairy 12", "0.417 Ferry 12 0.1"):
        with pytest.raises(AssertionError):
            assert_same_output(other, "0.417 Ferry 12")


def options_of(function):
    """Options of a function: what has to be given by name, or has a default."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
    }


def own_fields(component, base):
    return component.model_fields.keys() - base.model_fields.keys()


@pytest.mark.parametrize(
    "options",
    [
        options_of(QRRetriever.__init__),
        options_of(QRRetriever.from_pretrained),
        options_of(QRRetriever.rank),
        options_of(QRRetriever.rank_lists) | options_of(QRRetriever.encode),
        own_fields(LangChainReranker, BaseDocumentCompressor),
        own_fields(LlamaIndexReranker, BaseNodePostprocessor),
        own_fields(QRHeadMemory, Memory) | {"token_limit"},
        options_of(trim_messages_by_relevance) | options_of(QRHeadMemoryMiddleware),
    ],
    ids=["class", "load", "rank", "many", "LangChain", "LlamaIndex", "memory", "messages"],
)
def test_every_option_stands_in_the_table(options):
    assert options - {row[0].strip("`") for row in rows("Options")} == set()


def test_every_reading_option_stands_in_the_table_with_its_default(tiny):
    defaults = {row[0].strip("`"): row[3].strip("`") for row in rows("Options")}
    for name, field in type(tiny.options).model_fields.items():
        assert name in defaults
        if isinstance(field.default, int):
            assert defaults[name] in (str(field.default), f"{field.default / 2**30:.0f} GiB"), name
        elif field.default is not None:
            assert defaults[name] == f'"{field.default}"', name


def test_every_model_with_heads_stands_in_the_table_with_its_sets():
    table = rows("Which mode and which model")
    for heads in shipped_head_sets():
        if heads.model == EMBEDDED_MODEL:
            matching = [row for row in table if "embedded" in row[1] and f"`{heads.mode}`" in row[2]]
        else:
            words = re.split(r"[-.]", heads.model.partition("/")[2])
            matching = [row for row in table if words[0].lower() in row[1].lower()]
            assert any(word in matching[0][1] for word in words), heads.model
        assert len(matching) == 1, heads.model
        assert f"`{heads.name}`" in matching[0][3], (heads.model, heads.name)


def test_install_blocks_hold_pip_commands_alone():
    blocks = re.findall(r"```sh\n(.*?)```", section("Install"), re.DOTALL)
    assert len(blocks) == 4
    assert all(line.startswith("pip install ") for block in blocks for line in block.splitlines())


def test_every_file_that_is_linked_exists():
    linked = {link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")}
    assert [link for link in sorted(linked) if not (ROOT / link).exists()] == []
