"""A list to rank as one record of a data set, and its ranking as another.

In:  {"id": 7, "query": "When does the ferry leave?", "documents": ["At nine.", {"text": "...", "id": "b"}]}
Out: {"id": 7, "ranking": [0, 1], "scores": [0.07, -0.01], "documents": [null, "b"], "windowed": false,
      "truncated": [], "file": "lists.jsonl", "line": 1}
"""

from typing import Any, NamedTuple

from qrhead_rag.core.passage import Passage, check_query
from qrhead_rag.datasets.passages import passage_of
from qrhead_rag.ranking.result import Ranking


class ListRecord(NamedTuple):
    """A query and the documents to rank for it."""

    id: str | int | None
    query: str
    documents: list[Passage]


def list_record(value: Any) -> ListRecord:
    """The list that a JSON value describes; fields it has besides id, query and documents are passed over.

    Raises:
        ValueError: a field is missing or of another type; the message names it and what was found.
    """
    if not isinstance(value, dict):
        raise ValueError(f"found a JSON {type(value).__name__}; expected an object with query and documents")
    query = value.get("query", value.get("question"))
    documents, identifier = value.get("documents"), value.get("id")
    if not isinstance(query, str):
        raise ValueError(f"query is {query!r:.40}; expected a string")
    if not isinstance(documents, list):
        raise ValueError(f"documents is {documents!r:.40}; expected a list of strings or objects with text")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
        raise ValueError(f"id is {identifier!r:.40}; expected a string, a whole number or none")
    return ListRecord(identifier, check_query(query), [_document(found, at) for at, found in enumerate(documents)])


def _document(value: Any, place: int) -> Passage:
    try:
        return Passage(text=value) if isinstance(value, str) else passage_of(value)
    except ValueError as error:
        raise ValueError(f"document {place}: {error}") from error


def ranking_row(record: ListRecord, ranking: Ranking, file: str, line: int) -> dict[str, Any]:
    """What is written for a ranked list.

    Returns:
        id: the list's own.
        ranking: places of the kept documents in the list, from 0, in the order asked for.
        scores: their scores, in the same order; they compare within this list only.
        documents: their ids, in the same order; None for one that has none.
        windowed: whether the list was ranked in sliding windows.
        truncated: places of kept documents of which only the beginning was read.
        file, line: where the list stands in the input, so that lists without an id are found again.
    """
    return {
        "id": record.id,
        "ranking": [ranked.index for ranked in ranking],
        "scores": [ranked.score for ranked in ranking],
        "documents": [ranked.passage.id for ranked in ranking],
        "windowed": ranking.windowed,
        "truncated": list(ranking.truncated),
        "file": file,
        "line": line,
    }
