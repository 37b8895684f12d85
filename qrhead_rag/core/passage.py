"""A caller's documents and query, checked."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Passage(BaseModel):
    """One document. The model reads title and text; id and metadata come back unchanged.

    >>> passage = Passage(title="Lighthouse", text="The keeper counts the ships.", id="a1")
    >>> print(passage.content)
    Lighthouse
    The keeper counts the ships.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str
    title: str | None = None
    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def content(self) -> str:
        """What the prompt has after the label: `title\\ntext`, or the text alone."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to read. A blank passage is kept, and ranked last."""
        return not self.content.strip()


Document: TypeAlias = str | Passage | Mapping[str, Any]


def as_passages(documents: Iterable[Document]) -> list[Passage]:
    """A passage for each document, in the caller's order; the caller's objects are not changed.

    Raises:
        TypeError: not a list of str, Passage or mapping; the message names the document's index and type.
        ValueError: a mapping with other keys or with values of the wrong type.

    >>> [passage.text for passage in as_passages(["Bread.", {"text": "Ships.", "id": "b"}])]
    ['Bread.', 'Ships.']
    """
    if isinstance(documents, str | bytes | Mapping | Passage) or not isinstance(documents, Iterable):
        raise TypeError(
            f"documents must be a list of str, Passage or mapping, found {type(documents).__name__}; "
            "put a single document into a list"
        )
    return [_as_passage(document, index) for index, document in enumerate(documents)]


def _as_passage(document: Document, index: int) -> Passage:
    if isinstance(document, Passage):
        return document
    if isinstance(document, str):
        return Passage(text=str(document))
    if isinstance(document, Mapping):
        try:
            return Passage(**document)
        except (ValidationError, TypeError) as error:
            raise ValueError(
                f"document {index} is a mapping that is not a passage; expected text and perhaps title, id, metadata: "
                f"{error}"
            ) from error
    raise TypeError(f"document {index} is {type(document).__name__}; expected str, Passage or a mapping with text")


def check_query(query: str) -> str:
    """Refuse a query that cannot be asked; return any other unchanged.

    Raises:
        TypeError: not a string.
        ValueError: blank.
    """
    if not isinstance(query, str):
        raise TypeError(f"query must be str, found {type(query).__name__}")
    if not query.strip():
        raise ValueError(f"query is blank ({query!r}); expected the question to rank the documents by")
    return query
