"""QRHeadReranker: nodes reordered by the attention of a model's retrieval heads."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import llama_index.core.instrumentation as instrument
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.postprocessor.qrhead.nodes import hide_metadata, passage_of
from llama_index.postprocessor.qrhead.own_text import OwnText, with_text

from qrhead_rag.frameworks.rerank import RerankOptions, copy_containers
from qrhead_rag.frameworks.reranked import RerankedDocument
from qrhead_rag.frameworks.scorer import warnings_of_threads

RETRIEVAL_SCORE = "retrieval_score"

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]


class QRHeadReranker(RerankOptions, BaseNodePostprocessor):
    """Reorders nodes by relevance to the query and keeps the best, for query engines, chat engines and retrievers.

    ScorerOptions choose the model: model, heads, mode, layout, instruction, device, dtype, options, or `scorer`, a
    loaded QRRetriever, which may be shared. RerankOptions choose what is kept: top_n (5), min_share, max_tokens, with
    fuse_retrieval beside the nodes' own scores, and title_key, the metadata key of a node's title. The input nodes are
    not changed. on_blank_query="keep_order" returns the first nodes as they are where there is nothing to rank by.

    prune cuts the copies' text to its best sentences, without their metadata, and notes in their metadata what is kept
    of the node's own text, as "qrhead_kept", and its hash, as "qrhead_full_text_sha256". min_evidence returns no node
    where nothing was found, or with fallback="first_stage" the first ones with the scores they had and with
    "qrhead_abstained" in their metadata. No model reads these notes.

    Attributes:
        keep_retrieval_score: keep a node's earlier score in its metadata as "retrieval_score", hidden from the language
            model and the embedding model.
        metadata_mode: the metadata that is ranked together with the text.

    Raises:
        ValueError: an option out of range, or a contradiction between `scorer` and another option.

    >>> QRHeadReranker(top_n=3, title_key="name").postprocess_nodes([], query_str="When does the ferry leave?")
    []
    """

    keep_retrieval_score: bool = False
    metadata_mode: MetadataMode = MetadataMode.EMBED

    @classmethod
    def class_name(cls) -> str:
        """Name under which the postprocessor is serialized."""
        return "QRHeadReranker"

    def find_heads(
        self, nodes: Sequence[BaseNode | NodeWithScore], *, questions: int = 40, show_progress: bool = False
    ) -> Self:
        """The same reranker with heads that are found on a corpus, without labels.

        Sentences of the nodes ask for the rest of their node; `heads.note` of the result says what the heads are worth
        on such questions, beside the former ones. Save them with `heads.save("heads.json")`. Takes minutes on a CPU.

        Args:
            nodes: some hundreds of the corpus, of three sentences or more each; not changed.
            questions: how many are made.
            show_progress: whether a bar shows the lists that have been run.

        Raises:
            ValueError: too few nodes to make questions, or no heads that are worth more than all of them together.
            ImportError: the extra `eval` of qrhead-rag is not installed.
        """
        bare = [node.node if isinstance(node, NodeWithScore) else node for node in nodes]
        passages = [passage_of(node, self, self.metadata_mode) for node in bare]
        return self.with_heads_found_in(passages, questions, show_progress)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            if self.on_blank_query == "raise":
                raise ValueError(
                    "QRHeadReranker found no query to rank by; pass query_str= or query_bundle= to postprocess_nodes"
                )
            query_bundle = QueryBundle("")
        _check_kinds(nodes, query_bundle)
        query, top_n, model = query_bundle.query_str, self.top_n or len(nodes), self.name_of_model
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        reranked: list[NodeWithScore] = []
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            if nodes:
                reranked = self._rerank(query, nodes)
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with warnings_of_threads():
            return await super()._apostprocess_nodes(nodes, query_bundle)

    def _rerank(self, query: str, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        retrieval_scores = [scored.score for scored in nodes]
        if self.prune is None:
            passages = [passage_of(scored.node, self, self.metadata_mode) for scored in nodes]
            return [self._returned(nodes[best.index], best) for best in self.rank(query, passages, retrieval_scores)]
        texts = [OwnText.of(scored.node, self, self.metadata_mode) for scored in nodes]
        ranking = self.rank(query, [text.passage for text in texts], retrieval_scores)
        return [self._returned(nodes[best.index], _in_own_text(best, texts[best.index])) for best in ranking]

    def _returned(self, retrieved: NodeWithScore, reranked: RerankedDocument) -> NodeWithScore:
        """A copy with its score, its cut text and notes that no model reads."""
        node, text = retrieved.node, retrieved.node.get_content(metadata_mode=MetadataMode.NONE)
        notes = reranked.notes(text)
        if self.keep_retrieval_score:
            notes[RETRIEVAL_SCORE] = None if retrieved.score is None else float(retrieved.score)
        metadata = copy_containers(node.metadata)
        metadata.update(notes)
        node = hide_metadata(node, *notes) if notes else node
        node = node.model_copy(update={"metadata": metadata})
        cut = reranked.cut(text)
        node = node if cut == text else with_text(node, cut)
        score = retrieved.score if reranked.score is None else reranked.score
        return retrieved.model_copy(update={"node": node, "score": score})


def _in_own_text(reranked: RerankedDocument, text: OwnText) -> RerankedDocument:
    """The same, with what is kept counted in the node's own text."""
    return reranked if reranked.kept is None else replace(reranked, kept=text.ranges(reranked.kept))


def _check_kinds(nodes: list[NodeWithScore], query_bundle: QueryBundle) -> None:
    if not isinstance(query_bundle, QueryBundle):
        raise TypeError(
            f"query_bundle is {type(query_bundle).__name__}; expected a QueryBundle: a text goes into query_str="
        )
    for index, node in enumerate(nodes):
        if not isinstance(node, NodeWithScore):
            raise TypeError(
                f"node {index} is {type(node).__name__}; expected a list of NodeWithScore: a node is "
                "NodeWithScore(node=node), a text NodeWithScore(node=TextNode(text=text))"
            )
