"""QRHeadReranker: nodes reordered by the attention that a model's retrieval heads pay them."""

from typing import Any, Self

import llama_index.core.instrumentation as instrument
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import model_validator

from qrhead_rag.core.heads import EMBEDDED_MODEL
from qrhead_rag.core.passage import Passage
from qrhead_rag.core.selection import Selection
from qrhead_rag.frameworks.scorer import ScorerOptions

RETRIEVAL_SCORE = "retrieval_score"

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]


class QRHeadReranker(ScorerOptions, BaseNodePostprocessor):
    """Reorders nodes by relevance to the query and keeps the best, for query engines, chat engines and retrievers.

    Which model ranks is said by the options of ScorerOptions: model, heads, mode, layout, instruction, device, dtype,
    options, or `scorer`, a QRRetriever that is already loaded and may be shared.

    The nodes that come in are not changed.

    Attributes:
        top_n: nodes to keep; None keeps all.
        min_share: keep nodes with at least this share (0 to 1) of the list's positive score mass.
        max_tokens: keep whole nodes, best first, within this many tokens of the ranking model.
        keep_retrieval_score: note the score a node came with in its metadata, as "retrieval_score", where neither the
            language model nor the embedding model reads it.
        metadata_mode: which metadata is ranked together with the text.
        title_key: metadata key of a node's title, which then stands before the text as the model's prompt has it.

    Raises:
        ValueError: an option out of range, or a contradiction between `scorer` and another option.
    """

    top_n: int | None = 5
    min_share: float | None = None
    max_tokens: int | None = None
    keep_retrieval_score: bool = False
    metadata_mode: MetadataMode = MetadataMode.EMBED
    title_key: str | None = None

    @classmethod
    def class_name(cls) -> str:
        """Name under which the postprocessor is serialized."""
        return "QRHeadReranker"

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        Selection(**self._selection())
        return self

    def _selection(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "min_share": self.min_share, "max_tokens": self.max_tokens}

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError(
                "QRHeadReranker found no query to rank by; pass query_str= or query_bundle= to postprocess_nodes"
            )
        query, top_n, model = query_bundle.query_str, self.top_n or len(nodes), self.model or EMBEDDED_MODEL
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
                passages = [self._passage(found.node) for found in nodes]
                ranking = self.load_scorer().rank(query, passages, **self._selection())
                reranked = [self._scored(nodes[ranked.index], ranked.score) for ranked in ranking]
            event.on_end(payload={EventPayload.NODES: reranked})
        dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    def _passage(self, node: BaseNode) -> Passage:
        if not node.get_content(metadata_mode=MetadataMode.NONE).strip():
            return Passage(text="")  # metadata alone would rank an image by the name of its file
        title = node.metadata.get(self.title_key) if self.title_key else None
        if title is None:
            return Passage(text=node.get_content(metadata_mode=self.metadata_mode))
        untitled = _hiding(node, str(self.title_key))
        return Passage(text=untitled.get_content(metadata_mode=self.metadata_mode), title=str(title))

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        node = found.node
        if self.keep_retrieval_score:
            before = None if found.score is None else float(found.score)
            node = _hiding(node, RETRIEVAL_SCORE)
            node.metadata = {**node.metadata, RETRIEVAL_SCORE: before}
        return found.model_copy(update={"node": node, "score": score})


def _hiding(node: BaseNode, key: str) -> BaseNode:
    """A copy whose metadata `key` is read by neither the language model nor the embedding model."""
    excluded = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    return node.model_copy(update={name: list(dict.fromkeys([*getattr(node, name), key])) for name in excluded})
