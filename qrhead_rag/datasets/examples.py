"""A labelled example: what every reader of labelled data returns. `load.py` lists the formats."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qrhead_rag.core.passage import Passage, check_query

HIGHEST_GRADE = 10**6  # trec_eval counts in an array of as many numbers


class LabelledExample(BaseModel):
    """A query, candidate documents, and which of them are relevant.

    Attributes:
        query: the question, or the claim to check.
        documents: the candidates, in the order the data set or the first stage gives them.
        relevant: indices into `documents`; empty where nothing in the list answers.
        grades: relevance of each of `relevant`, in its order; empty means 1 for each.
        missed: grades of relevant documents that the first stage did not put into the list. They count in recall and in
            the ideal ranking of nDCG, as trec_eval counts them.
        id: the record's own id.
        answer: the reference answer.
        metadata: the record's other fields.

    Raises:
        ValueError: a blank query, no documents, an index or grade out of range, an index repeated, too many grades.

    >>> example = LabelledExample(
    ...     query="When does the ferry leave?",
    ...     documents=(Passage(text="Bread is baked at dawn."), Passage(text="The ferry leaves at nine.")),
    ...     relevant=(1,),
    ... )
    >>> example.judgements, example.reordered([1, 0]).relevant
    ({1: 1}, (0,))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str
    documents: tuple[Passage, ...]
    relevant: tuple[int, ...]
    grades: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()
    id: str | None = None
    answer: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("query")
    @classmethod
    def _check_query(cls, query: str) -> str:
        return check_query(query)

    @model_validator(mode="after")
    def _check_relevant(self) -> Self:
        if not self.documents:
            raise ValueError("an example without documents; expected at least 1")
        outside = [index for index in self.relevant if not 0 <= index < len(self.documents)]
        if outside:
            raise ValueError(f"relevant documents {outside} of a list of {len(self.documents)}; indices start at 0")
        if len(set(self.relevant)) != len(self.relevant):
            raise ValueError(f"relevant documents {list(self.relevant)} name a document twice")
        if self.grades and len(self.grades) != len(self.relevant):
            raise ValueError(f"{len(self.grades)} grades for {len(self.relevant)} relevant documents; expected as many")
        if outside := [grade for grade in (*self.grades, *self.missed) if not 1 <= grade <= HIGHEST_GRADE]:
            raise ValueError(f"grades {outside}: a relevant document has a grade from 1 to {HIGHEST_GRADE}")
        return self

    @property
    def judgements(self) -> dict[int, int]:
        """Grade of each relevant document of the list, by index."""
        return dict(zip(self.relevant, self.grades or (1,) * len(self.relevant), strict=True))

    def reordered(self, order: Sequence[int]) -> Self:
        """The same example with its documents in another order.

        Args:
            order: the index, in this example, of each document of the new one; a permutation.

        Raises:
            ValueError: not a permutation of the documents.
        """
        if sorted(order) != list(range(len(self.documents))):
            raise ValueError(f"{list(order)} is not an order of {len(self.documents)} documents")
        new_index = {old: new for new, old in enumerate(order)}
        return self.model_copy(
            update={
                "documents": tuple(self.documents[old] for old in order),
                "relevant": tuple(new_index[old] for old in self.relevant),
            }
        )
