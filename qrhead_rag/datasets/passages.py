"""Passages and lists without labels, for the command line and the cluster.

A file of passages is text with a document on each line, or JSON: an object on each line, or an array of objects. A list
to rank is a JSON object:

    {"id": 7, "query": "When does the ferry leave?", "documents": ["At nine.", {"text": "...", "id": "b"}]}
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from qrhead_rag.core.passage import Passage, check_query
from qrhead_rag.datasets.records import MalformedRecord, RawRecord, parse_json_records
from qrhead_rag.extras import require_extra

FileFormat: TypeAlias = Literal["txt", "jsonl"]


def parse_passages(content: bytes, file_format: FileFormat, name: str) -> list[tuple[int, Passage]]:
    """The passages of a file, each with the number of its line, from 1. Blank lines are skipped.

    Args:
        content: of the file, in UTF-8.
        file_format: "txt" (a document on each line) or "jsonl" (an object on each line, or an array of objects: text,
            perhaps title and id; other fields become metadata).
        name: the file's name, for messages.

    Raises:
        ValueError: not UTF-8, or a malformed line; the message has file, line and what was expected.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{name}:{line_number}: not UTF-8 (byte {content[error.start]:#04x}); convert the file"
        ) from error
    if file_format == "txt":
        # str.splitlines would also split at U+2028, which may occur inside a text.
        lines = enumerate(text.split("\n"), start=1)
        return [(number, Passage(text=line.removesuffix("\r"))) for number, line in lines if line.strip()]
    passages = []
    records = list(parse_json_records(text, Path(name)))
    for record in records or ([RawRecord(1, [])] if text.strip() else []):  # an empty array is no passage
        if isinstance(record, MalformedRecord):
            raise ValueError(str(record))
        try:
            passages.append((record.line, passage_of(record.value)))
        except ValueError as error:
            raise ValueError(f"{name}:{record.line}: {error}") from error
    return passages


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a file, or of a folder: each of its text files is a passage for each paragraph.

    Args:
        path: .txt (a passage on each line), .jsonl, .json or .parquet (objects with text, perhaps title and id), or a
            folder of .txt and .md files.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file of another kind, a malformed line, or a folder without text files; the message names it.
        ImportError: a .parquet file without the extra `ray`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
        if not files:
            raise ValueError(f"{path} has no .txt or .md file; expected a folder of text files, or a file of passages")
        return [passage for file in files for passage in _paragraphs(file)]
    if path.suffix == ".parquet":
        return _rows(path)
    if path.suffix not in (".txt", ".jsonl", ".json"):
        raise ValueError(f"{path} ends in {path.suffix!r}; expected .txt, .jsonl, .json, .parquet or a folder")
    file_format: FileFormat = "txt" if path.suffix == ".txt" else "jsonl"
    return [passage for _, passage in parse_passages(path.read_bytes(), file_format, str(path))]


def _paragraphs(file: Path) -> list[Passage]:
    """What blank lines part in a text file."""
    lines = {number: passage.text for number, passage in parse_passages(file.read_bytes(), "txt", str(file))}
    paragraphs: list[list[str]] = []
    for number, line in lines.items():
        if number - 1 in lines:
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    return [Passage(text="\n".join(paragraph)) for paragraph in paragraphs]


def _rows(file: Path) -> list[Passage]:
    parquet, arrow = require_extra("pyarrow.parquet", "ray"), require_extra("pyarrow", "ray")
    try:
        rows = parquet.read_table(file).to_pylist()
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a Parquet file ({error}); expected one with a column text") from error
    return [document_of(row, index) for index, row in enumerate(rows)]


def passage_of(value: Any) -> Passage:
    """The passage that a JSON value describes: text, perhaps title and id; other fields become metadata.

    Raises:
        ValueError: not an object, or a field of the wrong type; the message has both types.

    >>> passage_of({"text": "The ferry leaves at nine.", "page": 3}).metadata
    {'page': 3}
    """
    if not isinstance(value, dict):
        raise ValueError(f'found a JSON {type(value).__name__}; expected an object like {{"text": "..."}}')
    record = dict(value)
    text, title, identifier = record.pop("text", None), record.pop("title", None), record.pop("id", None)
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r:.40}; expected a string")
    if not isinstance(title, str | None):
        raise ValueError(f"title is {title!r:.40}; expected a string or none")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
        raise ValueError(f"id is {identifier!r:.40}; expected a string, a whole number or none")
    return Passage(
        text=text,
        title=title,
        id=None if identifier is None else str(identifier),
        metadata=_metadata(record),
    )


def _metadata(fields: dict[str, Any]) -> dict[str, Any]:
    inner = fields.pop("metadata", None)
    if not isinstance(inner, dict | None):
        raise ValueError(f"metadata is {inner!r:.40}; expected an object or none")
    return fields | (inner or {})


class ListRecord(NamedTuple):
    """A query and the documents to rank for it; `list_record` makes one.

    >>> list_record({"id": 7, "query": "When?", "documents": ["At nine."]}).documents[0].text
    'At nine.'
    """

    id: str | int | None
    query: str
    documents: list[Passage]


def list_record(value: Any) -> ListRecord:
    """The list that a JSON value describes; other fields than id, query and documents are ignored.

    Raises:
        ValueError: a field is missing or of another type; the message names it and its value.
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
    return ListRecord(
        identifier, check_query(query), [document_of(value, index) for index, value in enumerate(documents)]
    )


def document_of(value: Any, index: int) -> Passage:
    """The passage that a JSON value in a list describes: a text, or an object as `passage_of` takes it.

    Raises:
        ValueError: as `passage_of`; the message has the index.
    """
    try:
        return Passage(text=value) if isinstance(value, str) else passage_of(value)
    except ValueError as error:
        raise ValueError(f"document {index}: {error}") from error
