"""QRHeadReranker in LlamaIndex, against the real llama-index-core."""

import copy
import json
import pickle

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.postprocessor.qrhead import QRHeadReranker
from pydantic import Field

from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

TEXTS = ["The keeper counts the ships.", "Soup is served at noon.", "The lighthouse is tall.", "Fog hides the pier."]
QUERY = "Who counts the ships?"


def nodes_of(texts=TEXTS, **options):
    return [NodeWithScore(node=TextNode(text=text, **options), score=0.1 * n) for n, text in enumerate(texts)]


@pytest.fixture
def reranker(tiny):
    return QRHeadReranker(scorer=tiny, top_n=None)


def test_order_and_scores_are_those_of_the_core(reranker, tiny):
    expected = tiny.rank(QUERY, TEXTS)
    reranked = reranker.postprocess_nodes(nodes_of(), query_str=QUERY)
    assert [node.node.text for node in reranked] == [TEXTS[ranked.index] for ranked in expected]
    assert [node.score for node in reranked] == pytest.approx([ranked.score for ranked in expected], abs=1e-6)
    assert all(type(node.score) is float for node in reranked)
    assert isinstance(reranker, BaseNodePostprocessor)


async def test_async_gives_the_same(reranker):
    expected = reranker.postprocess_nodes(nodes_of(), query_str=QUERY)
    reranked = await reranker.apostprocess_nodes(nodes_of(), query_bundle=QueryBundle(QUERY))
    assert [node.node.text for node in reranked] == [node.node.text for node in expected]
    assert [node.score for node in reranked] == pytest.approx([node.score for node in expected], abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"top_n": 2}, {"min_share": 0.3}, {"max_tokens": 40}, {"top_n": 3, "max_tokens": 40}]
)
def test_selection_is_that_of_the_core(tiny, options):
    expected = tiny.rank(QUERY, TEXTS, **options)
    reranked = QRHeadReranker(scorer=tiny, **{"top_n": None, **options}).postprocess_nodes(nodes_of(), query_str=QUERY)
    assert [node.node.text for node in reranked] == [ranked.passage.text for ranked in expected]
    assert 0 < len(reranked) < len(TEXTS)


def test_five_nodes_are_kept_unless_said_otherwise(tiny):
    assert len(QRHeadReranker(scorer=tiny).postprocess_nodes(nodes_of(TEXTS * 2), query_str=QUERY)) == 5


def test_the_callers_nodes_are_not_changed(tiny):
    nodes = nodes_of(metadata={"retrieval_score": "mine", "nested": {"a": [1]}})
    before = copy.deepcopy(nodes)
    reranked = QRHeadReranker(scorer=tiny, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUERY)
    assert nodes == before
    assert {id(node) for node in reranked}.isdisjoint(map(id, nodes))


def test_what_comes_back_shares_no_nested_metadata(tiny):
    nodes = nodes_of(metadata={"pages": {"seen": [1, {2}], "both": ([3],)}})
    before = copy.deepcopy(nodes)
    for node in QRHeadReranker(scorer=tiny).postprocess_nodes(nodes, query_str=QUERY):
        node.metadata["pages"]["seen"].append(9)
        node.metadata["pages"]["seen"][1].add(9)
        node.metadata["pages"]["both"][0].append(9)
        node.metadata["more"] = 9
    assert nodes == before


def test_whatever_a_node_carries_comes_back(reranker):
    text = TextNode(
        text=TEXTS[0],
        id_="text",
        embedding=[0.5, 0.25],
        metadata={"page": 3},
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
        start_char_idx=7,
    )
    image = ImageNode(text=TEXTS[1], id_="image", image="aGVsbG8=", image_mimetype="image/png")
    index = IndexNode(text=TEXTS[2], id_="index", index_id="deeper", obj={"any": "object"})
    several = Node(
        id_="several",
        text_resource=MediaResource(text=TEXTS[3]),
        image_resource=MediaResource(data=b"hello", mimetype="image/png"),
    )
    document = Document(text="A document.", id_="document")
    node_by_id = {node.node_id: node for node in (text, image, index, several, document)}
    reranked = reranker.postprocess_nodes([NodeWithScore(node=node) for node in node_by_id.values()], query_str=QUERY)
    assert {node.node_id for node in reranked} == set(node_by_id)
    for node in reranked:
        assert node.node == node_by_id[node.node_id]
        assert type(node.node) is type(node_by_id[node.node_id])


def test_a_subclass_of_node_with_score_survives(reranker):
    class Cited(NodeWithScore):
        page: int = 0

    (reranked,) = reranker.postprocess_nodes([Cited(node=TextNode(text="a"), score=1.0, page=12)], query_str=QUERY)
    assert (type(reranked), reranked.page) == (Cited, 12)


@pytest.mark.parametrize(
    "empty",
    [
        TextNode(text=" \n"),
        ImageNode(image_path="keeper counts ships.png", metadata={"caption": "the keeper counts the ships"}),
        Node(image_resource=MediaResource(data=b"hello")),
    ],
    ids=["blank", "image", "no text resource"],
)
def test_a_node_of_no_text_is_kept_and_ranked_last(reranker, empty):
    nodes = [NodeWithScore(node=empty), *nodes_of()]
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert len(reranked) == 5
    assert reranked[-1].node_id == empty.node_id
    assert reranked[-1].score == min(node.score for node in reranked)


def test_duplicates_keep_their_ids_and_their_order(reranker):
    nodes = [NodeWithScore(node=TextNode(text="The same.", id_=str(n))) for n in range(3)] + nodes_of()
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert sorted(node.node_id for node in reranked) == sorted(node.node_id for node in nodes)


def test_retrieval_score_is_kept_where_no_model_reads_it(tiny):
    reranker = QRHeadReranker(scorer=tiny, keep_retrieval_score=True, top_n=None)
    nodes = nodes_of(metadata={"author": "Ines"}, excluded_llm_metadata_keys=["author"])
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    by_text = {node.node.text: node for node in reranked}
    for node in nodes:
        kept = by_text[node.node.text].node
        assert kept.metadata == {"author": "Ines", "retrieval_score": node.score}
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert kept.get_content(metadata_mode=mode) == node.node.get_content(metadata_mode=mode)
    again = reranker.postprocess_nodes(reranked, query_str=QUERY)
    assert again[0].node.excluded_llm_metadata_keys == ["author", "retrieval_score"]
    plain = QRHeadReranker(scorer=tiny).postprocess_nodes(reranked, query_str=QUERY)
    assert [node.score for node in again] == pytest.approx([node.score for node in plain], abs=1e-6)


@pytest.mark.parametrize("score", [None, np.float32(0.5), np.float64(0.5), 1])
def test_missing_and_numpy_scores_are_fine(tiny, score):
    node = NodeWithScore(node=TextNode(text=TEXTS[0]), score=None if score is None else 0.0)
    node.score = score
    (reranked,) = QRHeadReranker(scorer=tiny, keep_retrieval_score=True).postprocess_nodes([node], query_str=QUERY)
    kept = reranked.node.metadata["retrieval_score"]
    assert kept == score
    assert kept is None or type(kept) is float
    json.dumps(reranked.node.to_dict())


def test_numpy_values_in_metadata_pass_through(reranker):
    nodes = nodes_of(metadata={"vector": np.arange(3), "page": np.int64(4)})
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert all(
        node.metadata["vector"] is nodes[0].metadata["vector"] for node in reranked if node.node_id == nodes[0].node_id
    )
    assert len(reranked) == 4


def test_metadata_mode_says_which_text_is_ranked(tiny):
    nodes = [
        NodeWithScore(
            node=TextNode(text=text, metadata={"seen": text[:9], "hid": "x"}, excluded_embed_metadata_keys=["hid"])
        )
        for text in TEXTS
    ]
    for mode in MetadataMode:
        expected = tiny.rank(QUERY, [node.node.get_content(metadata_mode=mode) for node in nodes])
        reranked = QRHeadReranker(scorer=tiny, metadata_mode=mode).postprocess_nodes(nodes, query_str=QUERY)
        assert [node.score for node in reranked] == pytest.approx([ranked.score for ranked in expected], abs=1e-6)
    assert QRHeadReranker().metadata_mode == MetadataMode.EMBED


def test_a_title_key_makes_a_title_and_a_title_alone_does_not(tiny):
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"name": f"Chapter {n}"})) for n, text in enumerate(TEXTS)]
    del nodes[2].node.metadata["name"]
    passages = [{"text": text, "title": f"Chapter {n}"} for n, text in enumerate(TEXTS)]
    passages[2]["title"] = None
    reranked = QRHeadReranker(scorer=tiny, title_key="name").postprocess_nodes(nodes, query_str=QUERY)
    assert [node.score for node in reranked] == pytest.approx(
        [ranked.score for ranked in tiny.rank(QUERY, passages)], abs=1e-6
    )
    assert reranked[0].node.excluded_embed_metadata_keys == []
    plain = QRHeadReranker(scorer=tiny, metadata_mode=MetadataMode.NONE).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.score for node in plain] == pytest.approx(
        [ranked.score for ranked in tiny.rank(QUERY, TEXTS)], abs=1e-6
    )


def test_options_reach_the_scorer(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reranker = QRHeadReranker(
        model=str(tmp_path), heads=[(1, 0)], mode="independent", instruction="Find it.", device="cpu", dtype="float64"
    )
    scorer = reranker.load_scorer()
    assert scorer.heads.heads == ((1, 0),)
    assert (scorer.mode, scorer.instruction, str(scorer.model.dtype)) == ("independent", "Find it.", "torch.float64")
    restored = QRHeadReranker.from_json(reranker.to_json())
    assert restored.load_scorer() is scorer


def test_no_nodes_no_model():
    reranker = QRHeadReranker(model="nobody/has-this-model")
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match=r"no query.*query_str="):
        reranker.postprocess_nodes([])


@pytest.mark.parametrize(
    "options", [{"top_n": 0}, {"min_share": 2}, {"max_tokens": -1}, {"top_m": 3}, {"metadata_mode": "some"}]
)
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        QRHeadReranker(**options)


def test_a_blank_query_is_refused(reranker):
    with pytest.raises(ValueError, match="query is blank"):
        reranker.postprocess_nodes(nodes_of(), query_str=" ")


@pytest.mark.parametrize("query", [{"query_str": " \n"}, {"query_bundle": QueryBundle("")}, {}])
def test_a_blank_query_may_keep_the_order(tiny, query):
    reranker = QRHeadReranker(scorer=tiny, top_n=2, on_blank_query="keep_order", keep_retrieval_score=True)
    nodes = nodes_of()
    with pytest.warns(
        UserWarning, match=r"the query is blank .* keep the order .*on_blank_query='keep_order'"
    ) as caught:
        reranked = reranker.postprocess_nodes(nodes, **query)
    assert warnings_of_call(caught)[0].filename == __file__
    assert [(node.text, node.score) for node in reranked] == [(node.text, node.score) for node in nodes[:2]]
    assert reranker.postprocess_nodes(nodes, query_str=QUERY)[0].text == tiny.rank(QUERY, TEXTS)[0].passage.text


@pytest.mark.parametrize("node", [TextNode(text="a"), "a", ("node", 1), None])
def test_what_is_no_scored_node_is_refused_by_its_place(reranker, node):
    with pytest.raises(TypeError, match=rf"node 4 is {type(node).__name__}; expected a list of NodeWithScore"):
        reranker.postprocess_nodes([*nodes_of(), node], query_str=QUERY)


def test_a_text_in_place_of_a_query_bundle_is_refused_with_the_way_out(reranker):
    with pytest.raises(TypeError, match=r"query_bundle is str; expected a QueryBundle.* query_str="):
        reranker.postprocess_nodes(nodes_of(), QUERY)


class Events(BaseEventHandler):
    seen: list = Field(default_factory=list)

    def handle(self, event, **_):
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


@pytest.mark.parametrize("top_n", [2, None])
@pytest.mark.parametrize("count", [0, 4])
def test_events_and_callbacks_tell_of_every_ranking(tiny, top_n, count):
    events, debug = Events(), LlamaDebugHandler(print_trace_on_end=False)
    reranker = QRHeadReranker(scorer=tiny, top_n=top_n, callback_manager=CallbackManager([debug]))
    nodes = nodes_of()[:count]
    root = get_dispatcher()
    root.add_event_handler(events)
    try:
        reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    finally:
        root.event_handlers.remove(events)
    start, end = events.seen
    assert (start.query.query_str, start.nodes, start.model_name) == (QUERY, nodes, reranker.model)
    assert type(start.top_n) is int
    assert start.top_n == (top_n or count)
    assert end.nodes == reranked
    ((before, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert before.payload[EventPayload.NODES] == nodes
    assert before.payload[EventPayload.QUERY_STR] == QUERY
    assert before.payload[EventPayload.TOP_K] == start.top_n
    assert after.payload[EventPayload.NODES] == reranked


def test_a_query_engine_may_set_the_callback_manager(reranker):
    manager = CallbackManager([])
    reranker.callback_manager = manager
    assert reranker.callback_manager is manager


def test_data_and_pickle_round_trips():
    heads = [(1, 0), (2, 1)]
    reranker = QRHeadReranker(
        top_n=3, model="some/model", heads=heads, mode="late", min_share=0.1, max_tokens=50, title_key="t", device="cpu"
    )
    for restored in (
        QRHeadReranker.from_dict(reranker.to_dict()),
        QRHeadReranker.from_json(reranker.to_json()),
        pickle.loads(pickle.dumps(reranker)),
        copy.deepcopy(reranker),
    ):
        assert restored.to_dict() == reranker.to_dict()
        assert restored.scorer is None
    assert reranker.to_dict()["class_name"] == "QRHeadReranker"


def test_an_injected_scorer_is_rebuilt_from_model_heads_and_mode(embedded):
    reranker = QRHeadReranker(scorer=embedded, top_n=2)
    expected = reranker.postprocess_nodes(nodes_of(), query_str=QUERY)
    for restored in (QRHeadReranker.from_json(reranker.to_json()), pickle.loads(pickle.dumps(reranker))):
        assert (restored.model, restored.heads, restored.mode) == (embedded.model_name, embedded.heads, "late")
        reranked = restored.postprocess_nodes(nodes_of(), query_str=QUERY)
        assert [node.node.text for node in reranked] == [node.node.text for node in expected]
        assert [node.score for node in reranked] == pytest.approx([node.score for node in expected], abs=1e-6)
        assert restored.load_scorer() is not embedded


def test_a_scorer_in_memory_only_is_not_rebuilt_as_another(reranker, tiny):
    with pytest.raises(ValueError, match="lived in memory only"):
        QRHeadReranker.from_dict(reranker.to_dict())
    with pytest.raises(ValueError, match="lived in memory only"):
        pickle.loads(pickle.dumps(reranker))
    assert QRHeadReranker.from_dict(reranker.to_dict(), scorer=tiny).load_scorer() is tiny


def test_every_field_is_an_argument():
    assert QRHeadReranker.model_json_schema()["properties"].keys() >= {"top_n", "heads", "mode"}
    values = {name: getattr(QRHeadReranker(), name) for name in QRHeadReranker.model_fields}
    assert QRHeadReranker(**values) == QRHeadReranker(callback_manager=values["callback_manager"])
