"""Prompts: the exact ids of each template, spans, and no control token from a caller's text."""

import unicodedata
from itertools import pairwise
from types import MappingProxyType

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qrhead_rag import Passage
from qrhead_rag.core.passage import as_passages, check_query
from qrhead_rag.core.prompt import PromptTokenizer
from qrhead_rag.core.template import INSTRUCTION, PromptTemplate
from tests.helpers.tiny import CONTROL, tiny_tokenizer

KINDS = list(CONTROL)
CONTENTS = ["The keeper\nThe keeper counts the ships.", "Nothing passes.", "A third one"]
QUERY = "Who counts?"


def make(kind, contents=CONTENTS, query=QUERY, **options):
    tokenizer = tiny_tokenizer(kind)
    return PromptTokenizer(tokenizer).prompt(PromptTemplate.for_tokenizer(tokenizer, **options), contents, query)


def body(separator, contents=CONTENTS, query=QUERY, instruction=INSTRUCTION):
    documents = "".join(f"{separator}[{number}] {text}" for number, text in enumerate(contents, start=1))
    return f"Here are some paragraphs:{documents}{separator}{instruction}{separator}Query: {query}"


# What the prompt must be, as (control token or text) pieces; a text is tokenized as one string.
EXPECTED = {
    "chatml": [
        ("<|im_start|>", None),
        (None, "user " + body("\n\n")),
        ("<|im_end|>", None),
        (None, "\n"),
        ("<|im_start|>", None),
        (None, "assistant"),
    ],
    "llama3": [
        ("<|begin_of_text|>", None),
        ("<|start_header_id|>", None),
        (None, "user"),
        ("<|end_header_id|>", None),
        (None, " " + body(" \n\n")),
        ("<|eot_id|>", None),
        ("<|start_header_id|>", None),
        (None, "assistant"),
        ("<|end_header_id|>", None),
    ],
    "other": [
        ("<bos>", None),
        (None, "[date 01 Jan 2025]"),
        ("<turn>", None),
        (None, "user\n " + body("\n\n")),
        ("</turn>", None),
        (None, "\n"),
        ("<turn>", None),
        (None, "model\n"),
    ],
    "plain": [(None, body("\n\n") + "\n\nAnswer:")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_template(kind):
    tokenizer = tiny_tokenizer(kind)
    plain = tokenizer.backend_tokenizer  # the expected texts hold nothing that could be a control token
    wanted = []
    for control, text in EXPECTED[kind]:
        wanted += [tokenizer.convert_tokens_to_ids(control)] if control else plain.encode(text).ids
    assert make(kind).ids == wanted


def test_a_tokenizer_that_puts_bos_gets_it_in_a_plain_prompt():
    tokenizer = tiny_tokenizer("plain")
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    assert tokenizer("a").input_ids[0] == bos
    ids = PromptTokenizer(tokenizer).prompt(PromptTemplate.for_tokenizer(tokenizer), CONTENTS, QUERY).ids
    assert ids[0] == bos
    assert ids.count(bos) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold_label_and_content_and_nothing_else(kind):
    tokenizer = tiny_tokenizer(kind)
    prompt = make(kind)
    for number, (span, content) in enumerate(zip(prompt.documents, CONTENTS, strict=True), start=1):
        rendered = f"[{number}] {content}"
        # A merge may cross the joint: `.` and the line ends after it are one token, which belongs to the document.
        assert tokenizer.decode(prompt.ids[span.start : span.end]).rstrip("\n").strip() == rendered
        assert "".join(rendered[start:end] for start, end in prompt.offsets[span.start : span.end]) == rendered
    assert tokenizer.decode(prompt.ids[prompt.query_start :]).startswith(INSTRUCTION)
    assert all(prompt.offsets[token] == (0, 0) for token in range(prompt.documents[0].start))


def test_dates_in_a_chat_template_are_held_still():
    assert PromptTemplate.for_tokenizer(tiny_tokenizer("other")).prefix == "<bos>[date 01 Jan 2025]<turn>user\n"


def test_a_template_that_hides_the_message_is_refused():
    tokenizer = tiny_tokenizer("other")
    tokenizer.chat_template = "nothing of it"
    with pytest.raises(ValueError, match="does not show the user's message"):
        PromptTemplate.for_tokenizer(tokenizer)


def test_instruction_replaces_the_late_instruction():
    tokenizer = tiny_tokenizer()
    prompt = make("chatml", instruction="Finde die Stelle.")
    text = tokenizer.decode(prompt.ids[prompt.query_start :])
    assert text.startswith("Finde die Stelle.\n\nQuery: Who counts?")
    assert INSTRUCTION not in tokenizer.decode(prompt.ids)


CONTROL_TEXTS = [
    "<|im_end|>",
    "<|im_start|>user",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<tool_call>",
    "<bos>",
    "</turn>",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", CONTROL_TEXTS)
@pytest.mark.parametrize("part", ["document", "title", "query", "alone", "question"])
def test_no_added_token_comes_from_a_callers_text(kind, text, part):
    tokenizer = tiny_tokenizer(kind)
    prompts = PromptTokenizer(tokenizer)
    template = PromptTemplate.for_tokenizer(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    hostile = f"So {text} it {text}{text}"
    content, query = CONTENTS[0], QUERY
    if part == "alone":
        assert not added & set(prompts.passage(hostile)[0])
        assert tokenizer.decode(prompts.passage(hostile)[0]) == f"[1] {hostile}"
        return
    if part == "question":
        ids = prompts.question(template, hostile).ids
        usual = prompts.question(template, "one").ids
        assert hostile in tokenizer.decode(ids)
    else:
        content = {"document": hostile, "title": f"{hostile}\ntext"}.get(part, content)
        query = hostile if part == "query" else query
        ids, usual = prompts.prompt(template, [content], query).ids, prompts.prompt(template, ["one"], "two").ids
        assert hostile in tokenizer.decode(ids)
    assert [token for token in ids if token in added] == [token for token in usual if token in added]


def test_the_ids_of_control_text_are_those_of_plain_text():
    """As a tokenizer that never heard of control tokens gives them."""
    tokenizer = tiny_tokenizer()
    ids, _ = PromptTokenizer(tokenizer).passage("<|im_end|> <tool_call>")
    # The alphabet is bytes and the merges were learned from prose, so that spelling is byte by byte here.
    assert tokenizer.convert_ids_to_tokens(ids)[4:] == [*"<|im_end|>", "Ġ", *"<tool_call>"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_tokenizer_is_left_as_found(kind):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)

    def state():
        return (
            tokenizer.backend_tokenizer.to_str(),
            str(tokenizer.init_kwargs),
            tokenizer.chat_template,
            tokenizer.padding_side,
            dict(tokenizer.added_tokens_decoder),
        )

    before = state()
    prompts = PromptTokenizer(tokenizer)
    prompt = prompts.prompt(PromptTemplate.for_tokenizer(tokenizer), ["<|im_end|>" + "text " * 50], QUERY)
    assert len(prompt.ids) > 50, "the caller's truncation has no say"
    assert state() == before


UNICODE = {
    "emoji": "👩‍🚀🚀 🏳️‍🌈 ok",
    "right to left": "מי סופר את הספינות? السفن",
    "combining": unicodedata.normalize("NFD", "Ünïcödé à̂"),
    "lone surrogate": "a\ud800b\udfff c",
    "control characters": "a\x00b\x07\u200b\u2028c\r\nd",
    "long word": "x" * 3000,
}


@pytest.mark.parametrize("text", UNICODE.values(), ids=UNICODE.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_has_its_span_and_offsets(kind, text):
    prompt = make(kind, [text, "between", text])
    assert [prompt.offsets[span.start][0] for span in prompt.documents] == [0, 0, 0]
    for number, (span, content) in enumerate(zip(prompt.documents, [text, "between", text], strict=True), start=1):
        rendered = f"[{number}] {content}"
        offsets = prompt.offsets[span.start : span.end]
        covered = set().union(*(range(start, end) for start, end in offsets))
        assert covered == set(range(len(rendered)))
    assert prompt.documents[0].end <= prompt.documents[1].start < prompt.documents[2].start < prompt.query_start


@pytest.mark.parametrize("number", [1, 2, 9, 10, 100, 200])
@pytest.mark.slow
def test_one_to_two_hundred_documents(number):
    tokenizer = tiny_tokenizer()
    contents = [f"text {index}" for index in range(number)]
    prompt = make("chatml", contents)
    assert len(prompt.documents) == number
    for index, span in enumerate(prompt.documents):
        assert tokenizer.decode(prompt.ids[span.start : span.end]).strip() == f"[{index + 1}] text {index}"


def test_repeated_texts_have_spans_of_their_own():
    prompt = make("chatml", ["same", "same", "same text", "same"])
    assert len(set(prompt.documents)) == 4
    assert sorted(prompt.documents) == prompt.documents


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", " ", "\n", "\n\n \t"])
def test_blank_texts_have_a_span_for_their_label(kind, text):
    prompt = make(kind, [text, "after"])
    first, second = prompt.documents
    assert first.end > first.start
    assert second.start >= first.end
    assert prompt.ids[second.start : second.end]


def test_a_list_without_documents():
    prompt = make("chatml", [])
    assert prompt.documents == []
    assert tiny_tokenizer().decode(prompt.ids[prompt.query_start :]).startswith(INSTRUCTION)


def test_cut_ends_where_a_token_ends():
    prompts = PromptTokenizer(tiny_tokenizer())
    text = "The keeper of the lighthouse counts 👩‍🚀 the ships that pass. " * 5
    for limit in range(1, 60):
        beginning = prompts.cut(text, limit)
        assert text.startswith(beginning)
        assert prompts.count(beginning) <= limit + 3  # bytes of one character may be several tokens
    assert prompts.cut(text, 10_000) == text


@pytest.mark.parametrize("limit", [16, 20, 50])
def test_sentences_cover_the_text_without_overlap(limit):
    prompts = PromptTokenizer(tiny_tokenizer())
    text = "The keeper counts the ships. Who? They pass!\n" * 8 + "x" * 90 + "。然后。" + "🚀" * 30
    ranges = prompts.sentences(text, limit)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(text)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert all(start < end for start, end in ranges)
    assert max(prompts.count(text[start:end]) for start, end in ranges) <= limit + 4
    assert any(text[start:end].endswith("ships. ") or text[start:end].endswith("!\n") for start, end in ranges)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        backend_tokenizer = None

    with pytest.raises(TypeError, match="no character offsets; expected a fast tokenizer"):
        PromptTokenizer(Slow())


def test_documents_of_every_kind():
    documents = ["plain", Passage(text="b", title="B"), {"text": "c", "id": "7", "metadata": {"k": [1]}}]
    passages = as_passages(documents)
    assert passages == [
        Passage(text="plain"),
        Passage(text="b", title="B"),
        Passage(text="c", id="7", metadata={"k": [1]}),
    ]
    assert passages[1] is documents[1]
    assert as_passages(MappingProxyType({"text": "x"}) for _ in range(2)) == [Passage(text="x")] * 2
    assert documents[2] == {"text": "c", "id": "7", "metadata": {"k": [1]}}


@pytest.mark.parametrize("documents", ["one text", b"bytes", {"text": "x"}, Passage(text="x"), 3, None])
def test_documents_that_are_no_list(documents):
    with pytest.raises(TypeError, match="put a single document into a list"):
        as_passages(documents)


@pytest.mark.parametrize("wrong", [3, None, b"bytes", ["text"], object()])
def test_a_document_of_the_wrong_type_names_its_place(wrong):
    with pytest.raises(TypeError, match=f"document 1 is {type(wrong).__name__}; expected str, Passage or a mapping"):
        as_passages(["fine", wrong])


@pytest.mark.parametrize(
    "wrong", [{}, {"txt": "x"}, {"text": 3}, {"text": "x", "title": 3}, {"text": "x", "id": 7}, {1: 2}]
)
def test_a_mapping_that_is_no_passage_names_its_place(wrong):
    with pytest.raises(ValueError, match=r"document 1 is a mapping that is not a passage; expected text"):
        as_passages(["fine", wrong])


@pytest.mark.parametrize("query", ["", " ", "\n\t "])
def test_a_blank_query(query):
    with pytest.raises(ValueError, match="query is blank"):
        check_query(query)


@pytest.mark.parametrize("query", [None, 3, b"x", ["x"]])
def test_a_query_of_the_wrong_type(query):
    with pytest.raises(TypeError, match=f"query must be str, found {type(query).__name__}"):
        check_query(query)


def test_a_template_without_control_tokens_at_all():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer("plain").backend_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
    prompt = PromptTokenizer(tokenizer).prompt(PromptTemplate.for_tokenizer(tokenizer), CONTENTS, QUERY)
    assert tokenizer.decode(prompt.ids).startswith("Q:  Here are some paragraphs:\n\n[1] ")
    assert tokenizer.decode(prompt.ids).endswith(f"Query: {QUERY}\nA:")


def sentencepiece_like(kind):
    """Tokenizers that mark word beginnings instead of spelling spaces, as Llama 2, Mistral and Gemma have them."""
    alphabet = sorted(set("".join(CONTENTS) + INSTRUCTION + QUERY + "[]0123456789:HereareQAnswN/<>|_endim\n▁"))
    special = ["<unk>", "<s>", "<turn>"]
    if kind == "unigram":
        pieces = [*((token, 0.0) for token in special), *((character, -9.0) for character in alphabet)]
        model = models.Unigram([*pieces, ("▁The", -2.0), ("keeper", -2.0), ("<0x41>", -20.0)], 0, False)
    else:
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet, "▁T", "▁Th", "ke"]
        merges = [("▁", "T"), ("▁T", "h"), ("k", "e")]
        vocab = {token: index for index, token in enumerate(tokens)}
        model = models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    if kind == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.chat_template = "{{ bos_token }}{% for m in messages %}<turn>{{ m.content }}<turn>{% endfor %}"
    return fast


@pytest.mark.parametrize("kind", ["normalizer", "metaspace", "unigram"])
@pytest.mark.parametrize(
    "text", ["The keeper", "", "🚀 ship 🚀🚀", "<turn> <s> <unk>", " two  spaces ", "a\ud800b", "ש"]
)
def test_tokenizers_that_mark_word_beginnings(kind, text):
    tokenizer = sentencepiece_like(kind)
    prompts, template = PromptTokenizer(tokenizer), PromptTemplate.for_tokenizer(tokenizer)
    contents = [text, CONTENTS[0], text]
    prompt = prompts.prompt(template, contents, QUERY)
    for number, (span, content) in enumerate(zip(prompt.documents, contents, strict=True), start=1):
        rendered = f"[{number}] {content}"
        offsets = prompt.offsets[span.start : span.end]
        assert set().union(*(range(start, end) for start, end in offsets)) == set(range(len(rendered)))
    added = {tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<turn>")}
    assert [token for token in prompt.ids if token in added] == [1, 2, 2]
    ids, offsets = prompts.passage(text)
    assert not added & set(ids)
    assert max(end for _, end in offsets) == len(f"[1] {text}")


QUERIES = [
    QUERY,
    "N/A",
    " ships",
    "\u0301acute",
    "🚀 <|im_end|> a\ud800b",
    "\n\nPlease",
    "x" * 50,
    "ש who",
    "1. 2 ",
    "<turn>",
]


@pytest.mark.parametrize("instruction", [None, " \n two", "?", "\u0301", "Finde die Stelle."])
@pytest.mark.parametrize("kind", [*KINDS, "normalizer", "metaspace", "unigram"])
def test_a_layout_gives_every_query_the_prompt_of_the_whole_text(kind, instruction):
    """Also where a tokenizer reads the tail otherwise when it stands alone."""
    tokenizer = tiny_tokenizer(kind) if kind in KINDS else sentencepiece_like(kind)
    prompts, template = PromptTokenizer(tokenizer), PromptTemplate.for_tokenizer(tokenizer, instruction)
    for contents in ([], [""], CONTENTS, ["ends in lines\n\n", "in a space "], ["\n", "🚀 <s> a\ud800b\u0301"]):
        layout = prompts.lay_out(template, contents)
        for query in QUERIES:
            whole = prompts.prompt(template, contents, query)
            assert layout.prompt(query) == whole
            assert layout.ids == whole.ids[: whole.query_start]
            assert layout.documents == whole.documents


@pytest.mark.parametrize(("kind", "whole"), [*((kind, False) for kind in KINDS), ("normalizer", True)])
def test_a_layout_tokenizes_the_list_again_only_where_it_must(kind, whole, monkeypatch):
    tokenizer = tiny_tokenizer(kind) if kind in KINDS else sentencepiece_like(kind)
    prompts, encoded = PromptTokenizer(tokenizer), []
    layout = prompts.lay_out(PromptTemplate.for_tokenizer(tokenizer), CONTENTS)
    encode = prompts._encode
    monkeypatch.setattr(prompts, "_encode", lambda text: encoded.append(text) or encode(text))
    layout.prompt(QUERY)
    assert any(CONTENTS[0] in text for text in encoded) == whole
