"""What is ranked and what is asked: a caller's documents and query, checked."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Passage(BaseModel):
    """One document as the core sees it. Only title and text are read; id and metadata come back as they were given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str
    title: str | None = None
    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def content(self) -> str:
        """What stands in the prompt after the label: `title\\ntext`, or the text alone."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to read: such a passage is kept, and placed last."""
        return not self.content.strip()


Document: TypeAlias = str | Passage | Mapping[str, Any]


def as_passages(documents: Iterable[Document]) -> list[Passage]:
    """The caller's documents as passages, one for one; the caller's objects are not changed.

    Raises:
        TypeError: not a list of str, Passage or mapping; the message names the place and what was found.
        ValueError: a mapping with other keys or with values of the wrong type.
    """
    if isinstance(documents, str | bytes | Mapping | Passage) or not isinstance(documents, Iterable):
        raise TypeError(
            f"documents must be a list of str, Passage or mapping, found {type(documents).__name__}; "
            "put a single document into a list"
        )
    return [_as_passage(document, place) for place, document in enumerate(documents)]


def _as_passage(document: Document, place: int) -> Passage:
    if isinstance(document, Passage):
        return document
    if isinstance(document, str):
        return Passage(text=str(document))
    if isinstance(document, Mapping):
        try:
            return Passage(**document)
        except (ValidationError, TypeError) as error:
            raise ValueError(
                f"document {place} is a mapping that is not a passage; expected text and perhaps title, id, metadata: "
                f"{error}"
            ) from error
    raise TypeError(f"document {place} is {type(document).__name__}; expected str, Passage or a mapping with text")


def check_query(query: str) -> str:
    """The query itself.

    Raises:
        TypeError: not a string.
        ValueError: blank.
    """
    if not isinstance(query, str):
        raise TypeError(f"query must be str, found {type(query).__name__}")
    if not query.strip():
        raise ValueError(f"query is blank ({query!r}); expected the question to rank the documents by")
    return query
