"""A node's own text within the passage that the model reads, with metadata around it: pruning cuts the text alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llama_index.core.schema import BaseNode, MetadataMode, Node
from llama_index.postprocessor.qrhead.nodes import passage_of, without_title

from qrhead_rag import Passage
from qrhead_rag.frameworks.rerank import PassageOptions

_MARK = "\0"  # no template strips it


@dataclass(frozen=True)
class OwnText:
    """A node's own text, and where it stands in the passage.

    Attributes:
        text: of the node, without metadata.
        passage: what `passage_of` gives, with the lines before the text moved into the title, which is never cut. The
            model reads the same.
        start: of `text` in the passage's text; below 0 where white space was stripped from its beginning. None where
            the node made something else of its text.

    >>> from llama_index.core.schema import TextNode
    >>> node = TextNode(text="The ferry leaves at nine.", metadata={"page": 3})
    >>> own = OwnText.of(node, PassageOptions(), MetadataMode.EMBED)
    >>> own.passage.title, own.passage.text, own.start
    ('page: 3\\n', 'The ferry leaves at nine.', 0)
    """

    text: str
    passage: Passage
    start: int | None

    @classmethod
    def of(cls, node: BaseNode, options: PassageOptions, metadata_mode: MetadataMode) -> Self:
        """Of a node of any kind, which is not changed."""
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        passage = passage_of(node, options, metadata_mode)
        marked = with_text(without_title(node, options), _MARK).get_content(metadata_mode=metadata_mode)
        before, _, after = marked.partition(_MARK)
        whole = f"{before}{text}{after}"
        if passage.text == whole:
            start = len(before)
        elif passage.text == whole.strip():
            start = len(before) - (len(whole) - len(whole.lstrip()))
        else:
            return cls(text, passage, None)
        lines, line_break, _ = passage.text[: max(start, 0)].rpartition("\n")
        separated = Passage(
            text=passage.text[len(lines + line_break) :],
            title="\n".join(part for part in (passage.title, lines) if part),
            id=passage.id,
        )
        if separated.content != passage.content:
            return cls(text, passage, start)
        return cls(text, separated, start - len(lines + line_break))

    def ranges(self, kept: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """What is kept of the node's own text.

        All of it where its place in the passage is unknown, and where none of it would be left, because the evidence
        lies in metadata that a template puts after the text or on its line.

        Args:
            kept: characters of the passage's text; none where not even the beginning of a sentence fits a budget.
        """
        if self.start is None or list(kept) == [(0, len(self.passage.text))]:
            return ((0, len(self.text)),)
        own = []
        for first, last in kept:
            start, end = max(first - self.start, 0), max(last - self.start, 0)
            part = self.text[start:end]
            if part.strip():
                own.append((start + len(part) - len(part.lstrip()), start + len(part.rstrip())))
        return tuple(own) if own or not kept else ((0, len(self.text)),)


def with_text(node: BaseNode, text: str) -> BaseNode:
    """A copy of a node with another text; whatever else it has stays."""
    if isinstance(node, Node) and node.text_resource is not None:
        return node.model_copy(update={"text_resource": node.text_resource.model_copy(update={"text": text})})
    copied = node.model_copy()
    copied.set_content(text)
    return copied
