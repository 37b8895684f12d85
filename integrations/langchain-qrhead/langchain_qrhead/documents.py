"""What the model reads of documents: the same for the reranker and for the encoder that ran before it."""

from collections.abc import Sequence

from langchain_core.documents import Document

from qrhead_rag import Passage
from qrhead_rag.frameworks.rerank import PassageOptions


def passages_of(documents: Sequence[Document], options: PassageOptions) -> list[Passage]:
    """Documents as passages; not changed.

    Args:
        documents: of LangChain.
        options: names the metadata that is a document's title.

    Raises:
        TypeError: something else than a document.
    """
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"document {index} is {type(document).__name__}; expected a list of Document: "
                "a text is Document(page_content=text)"
            )
    return [
        Passage(text=document.page_content, title=options.title_of(document.metadata), id=document.id)
        for document in documents
    ]
