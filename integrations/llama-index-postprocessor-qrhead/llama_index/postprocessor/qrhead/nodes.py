"""What the model reads of a node: the same for the reranker and for the encoder that ran before it."""

from llama_index.core.schema import BaseNode, MetadataMode

from qrhead_rag import Passage
from qrhead_rag.frameworks.rerank import PassageOptions


def passage_of(node: BaseNode, options: PassageOptions, metadata_mode: MetadataMode) -> Passage:
    """A node as a passage; not changed.

    Args:
        node: of any kind.
        options: names the metadata that is its title.
        metadata_mode: the metadata that is read together with the text.
    """
    if not node.get_content(metadata_mode=MetadataMode.NONE).strip():
        return Passage(text="", id=node.node_id)  # metadata alone would rank an image by the name of its file
    text = without_title(node, options).get_content(metadata_mode=metadata_mode)
    return Passage(text=text, title=options.title_of(node.metadata), id=node.node_id)


def without_title(node: BaseNode, options: PassageOptions) -> BaseNode:
    """The node, or a copy that hides the metadata which is its title and stands before the text anyway."""
    return node if options.title_of(node.metadata) is None else hide_metadata(node, str(options.title_key))


def hide_metadata(node: BaseNode, *keys: str) -> BaseNode:
    """A copy whose metadata of these keys is hidden from the language model and the embedding model."""
    excluded = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    return node.model_copy(update={name: list(dict.fromkeys([*getattr(node, name), *keys])) for name in excluded})
