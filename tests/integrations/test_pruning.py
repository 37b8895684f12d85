"""`prune` in both rerankers: copies with a cut text, and the callers' nodes and documents as they were."""

import copy
import hashlib
import json
import pickle

import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.prompts import PromptTemplate, format_document
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker
from llama_index.postprocessor.qrhead.own_text import OwnText

from qrhead_rag import Passage, Prune, QRRetriever
from qrhead_rag.core.pruning import cut_text
from tests.helpers.tiny import tiny_model, tiny_tokenizer

QUERY = "Who counts the ships?"
TEXTS = [
    "The keeper counts the ships. Bread is baked at dawn. Two ships pass. Soup is served at noon.",
    "None of the ships pass. The lighthouse is tall. However, the keeper counts. Fog hides the pier.",
    "One sentence without a stop",
]
METADATA = {"page": 3, "chapter": "Bread is baked at dawn."}
NOTES = {"qrhead_kept", "qrhead_full_text_sha256"}


@pytest.fixture(scope="module")
def scorer():
    """One that keeps nothing: what it has read of a list would be read again with another rounding."""
    model = tiny_model(max_position_embeddings=2048)
    return QRRetriever(model, tiny_tokenizer(), heads=[(1, 0), (2, 1)], cache_bytes=0)


def nodes_of(texts=TEXTS, **options):
    return [NodeWithScore(node=TextNode(text=text, id_=str(n), **options)) for n, text in enumerate(texts)]


def documents_of(texts=TEXTS, **metadata):
    return [
        LangChainDocument(page_content=text, id=str(n), metadata=copy.deepcopy(metadata))
        for n, text in enumerate(texts)
    ]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def own_text(node):
    return node.get_content(metadata_mode=MetadataMode.NONE)


def assert_cut(text, cut, metadata):
    """The text is cut as the notes say, and the notes are plain data."""
    assert cut == cut_text(text, metadata["qrhead_kept"])
    assert metadata["qrhead_full_text_sha256"] == digest(text)
    assert json.loads(json.dumps(metadata["qrhead_kept"])) == metadata["qrhead_kept"]


@pytest.mark.parametrize("prune", [0.9, 40, Prune(min_share=0.5, max_tokens=30, omission=" (…) ")])
def test_langchain_cuts_copies_as_the_core_does(scorer, prune):
    documents = documents_of(nested={"a": [1]})
    before = copy.deepcopy(documents)
    expected = scorer.rank(QUERY, TEXTS, prune=prune)
    reranked = LangChainReranker(scorer=scorer, prune=prune).compress_documents(documents, QUERY)
    assert documents == before
    assert [(d.id, d.page_content) for d in reranked] == [(str(r.index), r.pruned) for r in expected]
    assert [d.metadata["relevance_score"] for d in reranked] == [r.score for r in expected]
    assert [d.metadata["qrhead_kept"] for d in reranked] == [[list(span) for span in r.kept] for r in expected]
    assert [d.metadata["qrhead_full_text_sha256"] for d in reranked] == [digest(TEXTS[r.index]) for r in expected]
    assert any(d.page_content != TEXTS[int(d.id)] for d in reranked)
    for document in reranked:
        document.metadata["nested"]["a"].append(2)
    assert documents == before


def test_a_prompt_of_langchain_reads_the_cut_text_alone(scorer):
    reranked = LangChainReranker(scorer=scorer, prune=0.9).compress_documents(documents_of(), QUERY)
    for document in reranked:
        assert format_document(document, PromptTemplate.from_template("{page_content}")) == document.page_content


def test_langchain_never_cuts_a_title(scorer):
    documents = documents_of(name="The keeper counts the ships.")
    passages = [Passage(title="The keeper counts the ships.", text=text) for text in TEXTS]
    reranker = LangChainReranker(scorer=scorer, title_key="name", prune=0.9)
    assert [d.page_content for d in reranker.compress_documents(documents, QUERY)] == [
        ranked.pruned for ranked in scorer.rank(QUERY, passages, prune=0.9)
    ]


@pytest.mark.parametrize("prune", [0.9, 60])
@pytest.mark.parametrize("mode", MetadataMode)
def test_llama_index_cuts_the_text_and_not_the_metadata_around_it(scorer, mode, prune):
    nodes = nodes_of(
        metadata=METADATA,
        excluded_llm_metadata_keys=["page"],
        start_char_idx=7,
        embedding=[0.5],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
    )
    before = copy.deepcopy(nodes)
    plain = LlamaIndexReranker(scorer=scorer, metadata_mode=mode).postprocess_nodes(nodes, query_str=QUERY)
    reranker = LlamaIndexReranker(scorer=scorer, metadata_mode=mode, prune=prune)
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert nodes == before
    assert reranked
    if prune == 0.9:
        assert [(node.node_id, node.score) for node in reranked] == [(node.node_id, node.score) for node in plain]
        assert any(node.text != TEXTS[int(node.node_id)] for node in reranked)
    for node in reranked:
        original = nodes[int(node.node_id)].node
        assert_cut(original.text, node.text, node.metadata)
        changed = {"text", "metadata", "excluded_embed_metadata_keys", "excluded_llm_metadata_keys"}
        assert node.node.model_dump(exclude=changed) == original.model_dump(exclude=changed)
        assert {name: value for name, value in node.metadata.items() if name not in NOTES} == METADATA
        for reader in (MetadataMode.LLM, MetadataMode.EMBED):
            whole = original.get_content(metadata_mode=reader)
            assert node.get_content(metadata_mode=reader) == whole.replace(original.text, node.text)


@pytest.mark.parametrize("prune", [5, 60, 100])
def test_evidence_on_metadata_counts_for_no_sentence(scorer, prune):
    """The lines before the text are what a title is: read, and never cut."""
    nodes = nodes_of(metadata=METADATA)
    title = nodes[0].node.get_content(metadata_mode=MetadataMode.EMBED).removesuffix("\n" + TEXTS[0])
    expected = scorer.rank(QUERY, [Passage(title=title, text=text) for text in TEXTS], prune=prune)
    reranked = LlamaIndexReranker(scorer=scorer, prune=prune).postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node_id, node.text) for node in reranked] == [(str(r.index), r.pruned) for r in expected]


@pytest.mark.parametrize(
    "template",
    [
        "{metadata_str}\n\n{content}",
        "Metadata: {metadata_str}\n-----\nContent: {content}",
        "{content}\n\n{metadata_str}",
        "{metadata_str} {content} (end)",
        "<doc>\n{metadata_str}\n\n{content}\n</doc>",
    ],
)
@pytest.mark.parametrize("title_key", [None, "chapter"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_template_changes_what_is_read_or_where_the_text_is(scorer, template, title_key, text):
    # The metadata repeats the text, so that looking for the text alone would end in the metadata.
    node = TextNode(text=f" {text}\n", metadata={"summary": text, "chapter": "Ships"}, text_template=template)
    plain, pruned = (
        LlamaIndexReranker(scorer=scorer, title_key=title_key, prune=prune).postprocess_nodes(
            [NodeWithScore(node=node)], query_str=QUERY
        )[0]
        for prune in (None, 0.9)
    )
    assert pruned.score == plain.score
    assert (plain.text, plain.metadata) == (node.text, node.metadata)
    assert_cut(node.text, pruned.text, pruned.metadata)
    kept = [node.text[start:end] for start, end in pruned.metadata["qrhead_kept"]]
    assert kept
    assert all(part == part.strip() or part == node.text for part in kept)
    assert text in kept[0] or len(pruned.text) < len(text)


def test_a_text_of_which_nothing_would_be_left_stays_whole(scorer):
    """Where a template puts metadata after the text, all of the evidence may stand there."""
    node = TextNode(text=f"{TEXTS[2]}.", metadata={"summary": QUERY * 10}, text_template="{content}\n\n{metadata_str}")
    text = OwnText.of(node, LlamaIndexReranker(scorer=scorer), MetadataMode.EMBED)
    assert (text.start, text.passage.text[: len(node.text)]) == (0, node.text)
    assert text.ranges([(len(node.text) + 2, len(node.text) + 20)]) == ((0, len(node.text)),)
    assert text.ranges([(4, 12), (len(node.text) + 2, len(node.text) + 20)]) == ((4, 12),)


class Shouting(TextNode):
    def get_content(self, metadata_mode=MetadataMode.NONE):
        content = super().get_content(metadata_mode)
        return content if metadata_mode == MetadataMode.NONE else content.upper()


@pytest.mark.parametrize(
    "node",
    [
        Shouting(text=TEXTS[0], metadata=METADATA),
        TextNode(text=TEXTS[0], metadata=METADATA, text_template="{content}\n{metadata_str}\n{content}"),
        TextNode(text=TEXTS[0], metadata={"odd": "\0"}),
    ],
    ids=["changed", "twice", "mark in the metadata"],
)
def test_a_text_whose_place_is_unknown_stays_whole(scorer, node):
    reranker = LlamaIndexReranker(scorer=scorer, prune=1.0)
    (kept,) = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert kept.text == TEXTS[0]
    assert kept.metadata["qrhead_kept"] == [[0, len(TEXTS[0])]]


def kinds():
    return [
        TextNode(text=TEXTS[0], id_="text"),
        ImageNode(text=TEXTS[1], id_="image", image="aGVsbG8=", image_mimetype="image/png"),
        IndexNode(text=TEXTS[0], id_="index", index_id="deeper", obj={"any": "object"}),
        Node(
            id_="several",
            text_resource=MediaResource(text=TEXTS[1], mimetype="text/markdown"),
            image_resource=MediaResource(data=b"hello", mimetype="image/png"),
            metadata=METADATA,
        ),
        Document(text=TEXTS[0], id_="document", metadata=METADATA),
    ]


@pytest.mark.parametrize("node", kinds(), ids=lambda node: node.node_id)
def test_nodes_of_every_kind_are_cut_in_copies(scorer, node):
    before = copy.deepcopy(node)
    reranker = LlamaIndexReranker(scorer=scorer, prune=1.0)
    (kept,) = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert node == before
    assert type(kept.node) is type(node)
    text, cut = own_text(node), own_text(kept.node)
    assert len(cut) < len(text)
    assert_cut(text, cut, kept.metadata)
    assert kept.node_id == node.node_id
    assert getattr(kept.node, "obj", None) is getattr(node, "obj", None)
    assert getattr(kept.node, "image_resource", None) == getattr(node, "image_resource", None)
    if isinstance(node, Node):
        assert kept.node.text_resource.mimetype == node.text_resource.mimetype
    json.dumps(kept.node.to_dict() if not isinstance(node, IndexNode) else kept.node.metadata)


def test_a_node_of_no_text_comes_back_as_it_was(scorer):
    nodes = [
        NodeWithScore(node=Node(id_="image", image_resource=MediaResource(data=b"hello"), metadata=METADATA)),
        NodeWithScore(node=ImageNode(id_="path", image_path="keeper.png", metadata=METADATA)),
        *nodes_of(),
    ]
    reranked = LlamaIndexReranker(scorer=scorer, prune=0.9).postprocess_nodes(nodes, query_str=QUERY)
    by_id = {node.node_id: node.node for node in reranked}
    assert by_id["image"].text_resource is None
    assert by_id["path"].text == ""
    assert len(by_id) == 5


def test_a_passage_of_which_nothing_fits_leaves(scorer):
    expected = scorer.rank(QUERY, TEXTS, prune=6)
    assert 0 < len(expected) < len(TEXTS)
    documents = LangChainReranker(scorer=scorer, prune=6).compress_documents(documents_of(), QUERY)
    nodes = LlamaIndexReranker(scorer=scorer, prune=6).postprocess_nodes(nodes_of(), query_str=QUERY)
    assert [document.id for document in documents] == [str(ranked.index) for ranked in expected]
    assert [node.node_id for node in nodes] == [str(ranked.index) for ranked in expected]


@pytest.mark.parametrize("is_async", [False, True])
async def test_without_it_nothing_is_cut_or_noted(scorer, is_async):
    nodes, documents = nodes_of(metadata=METADATA), documents_of(**METADATA)
    by_index, by_documents = LlamaIndexReranker(scorer=scorer), LangChainReranker(scorer=scorer, prune=None)
    if is_async:
        returned = await by_index.apostprocess_nodes(nodes, query_str=QUERY)
        compressed = await by_documents.acompress_documents(documents, QUERY)
    else:
        returned = by_index.postprocess_nodes(nodes, query_str=QUERY)
        compressed = by_documents.compress_documents(documents, QUERY)
    read = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    expected = scorer.rank(QUERY, read)
    assert [(node.node, node.score) for node in returned] == [(nodes[r.index].node, r.score) for r in expected]
    assert [(d.page_content, d.metadata) for d in compressed] == [
        (TEXTS[r.index], {**METADATA, "relevance_score": r.score}) for r in scorer.rank(QUERY, TEXTS)
    ]


def test_a_blank_query_prunes_nothing(scorer):
    options = {"scorer": scorer, "on_blank_query": "keep_order", "prune": 10}
    nodes, documents = nodes_of(), documents_of()
    with pytest.warns(UserWarning, match="the query is blank"):
        assert LlamaIndexReranker(**options).postprocess_nodes(nodes, query_str=" ") == nodes
    with pytest.warns(UserWarning, match="the query is blank"):
        assert LangChainReranker(**options).compress_documents(documents, " ") == documents


def test_pruning_twice_notes_the_last_cut(scorer):
    first = LlamaIndexReranker(scorer=scorer, prune=0.5).postprocess_nodes(nodes_of(), query_str=QUERY)
    second = LlamaIndexReranker(scorer=scorer, prune=1.0).postprocess_nodes(first, query_str=QUERY)
    text_by_id = {node.node_id: node.text for node in first}
    for node in second:
        assert_cut(text_by_id[node.node_id], node.text, node.metadata)
        assert set(node.node.excluded_llm_metadata_keys) >= NOTES
        assert len(node.node.excluded_llm_metadata_keys) == len(set(node.node.excluded_llm_metadata_keys))


@pytest.mark.parametrize(
    ("prune", "expected"),
    [
        (None, None),
        (0.5, Prune(min_share=0.5)),
        (1.0, Prune(min_share=1.0)),
        (1, Prune(max_tokens=1)),
        (200, Prune(max_tokens=200)),
        (Prune(min_share=0.5, max_tokens=9, omission="…"), Prune(min_share=0.5, max_tokens=9, omission="…")),
    ],
)
def test_options_come_back_from_plain_data(prune, expected):
    options = {"prune": prune, "min_evidence": 0.25, "fallback": "first_stage"}
    of_index, of_chain = LlamaIndexReranker(**options), LangChainReranker(**options)
    restored = (
        LlamaIndexReranker.from_dict(json.loads(json.dumps(of_index.to_dict()))),
        LlamaIndexReranker.from_json(of_index.to_json()),
        LangChainReranker(**of_chain.model_dump()),
        LangChainReranker.model_validate_json(of_chain.model_dump_json()),
        *(pickle.loads(pickle.dumps(component)) for component in (of_index, of_chain)),
        *(copy.deepcopy(component) for component in (of_index, of_chain)),
    )
    for component in (of_index, of_chain, *restored):
        assert component.prune == expected
        assert (component.min_evidence, component.fallback) == (0.25, "first_stage")


@pytest.mark.parametrize("component", [LlamaIndexReranker, LangChainReranker])
@pytest.mark.parametrize("prune", [0, -1, 1.5, True, "0.5", {}, {"share": 0.5}])
def test_what_prunes_nothing_sensible_is_refused_where_the_component_is_made(component, prune):
    with pytest.raises(ValueError, match="prune"):
        component(prune=prune)
