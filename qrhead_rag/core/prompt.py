"""Text to token ids and spans: the listwise prompt of In-Context Re-ranking (Chen et al., arXiv 2410.02642) as used by
QRRetriever (Zhang et al., arXiv 2506.09944), kept to the letter for ChatML and Llama 3 models.

    PREFIX " Here are some paragraphs:" { SEP "[i] " title "\\n" text } SEP instruction SEP "Query: " query SUFFIX

The text between two control tokens is tokenized as one string, and spans come from character offsets, never from
searching for a text. Control tokens come from PREFIX and SUFFIX alone: caller's text is read by a copy of the tokenizer
that has no added tokens. This file runs no model.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qrhead_rag.core.plain_text import without_added_tokens
from qrhead_rag.core.template import PromptTemplate

NULL_QUERY = "N/A"

CONSTANT_LABEL = "[1] "

_OPENING = " Here are some paragraphs:"

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]|\n+")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Span(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a prompt.

    >>> span = Span(3, 5)
    >>> ["a", "b", "c", "d", "e", "f"][span.start : span.end]
    ['d', 'e']
    """

    start: int
    end: int


class Question(NamedTuple):
    """What follows documents that are tokenized alone.

    Attributes:
        ids: all tokens.
        query_start: first token of the query span, which runs to the end.
        query_tokens: the query's own tokens.

    >>> question = PromptTokenizer(tokenizer).question(PromptTemplate.for_tokenizer(tokenizer), "When?")
    >>> question.query_start < question.query_tokens.start < question.query_tokens.end <= len(question.ids)
    True
    """

    ids: list[int]
    query_start: int
    query_tokens: Span


@dataclass(frozen=True)
class Prompt:
    """Token ids with the spans that are read.

    Attributes:
        ids: all tokens of the prompt.
        documents: span of each document, its `[i]` label included, in the order of the prompt.
        query_start: first token of the query span, which runs to the end of the prompt.
        query_tokens: the query's own tokens within the query span.
        offsets: per token, its characters relative to its document (label included); (0, 0) outside documents.

    >>> template = PromptTemplate.for_tokenizer(tokenizer)
    >>> prompt = PromptTokenizer(tokenizer).prompt(template, ["The ferry leaves at nine.", "Tea is at four."], "When?")
    >>> len(prompt.documents), prompt.documents[1].end <= prompt.query_start < len(prompt.ids)
    (2, True)
    """

    ids: list[int]
    documents: list[Span]
    query_start: int
    query_tokens: Span
    offsets: list[tuple[int, int]]


class _ListText(NamedTuple):
    """The prompt as text up to the late instruction.

    Attributes:
        control_before: control tokens before the text.
        text: ends where the instruction begins.
        documents: first character of each document's label, and the character after its content.
    """

    control_before: list[int]
    text: str
    documents: list[tuple[int, int]]


class ListLayout:
    """A list laid into the prompt up to the query span. `PromptTokenizer.lay_out` makes it.

    Attributes:
        ids: tokens before the query span.
        documents: span of each document, its `[i]` label included.
        offsets: per token of `ids`, its characters relative to its document; (0, 0) outside documents.

    >>> template = PromptTemplate.for_tokenizer(tokenizer)
    >>> layout = PromptTokenizer(tokenizer).lay_out(template, ["The ferry leaves at nine.", "Tea is at four."])
    >>> layout.prompt("When?").ids[: len(layout.ids)] == layout.ids
    True
    """

    def __init__(self, tokenizer: "PromptTokenizer", template: PromptTemplate, contents: Sequence[str]) -> None:
        listed = tokenizer._list_text(template, contents)
        null = tokenizer._complete(template, listed, NULL_QUERY)
        self.ids, self.offsets = null.ids[: null.query_start], null.offsets[: null.query_start]
        self.documents = null.documents
        # Some tokenizers read a text otherwise where it begins a string: they put a space before it.
        stands_alone = null.ids[null.query_start :] == tokenizer._tail(template, NULL_QUERY)[0]
        self._tokenizer, self._template = tokenizer, template
        self._listed = None if stands_alone else listed
        self._null = null
        self._latest = NULL_QUERY, null

    def num_tokens(self, query: str | None) -> int:
        """Tokens of the prompt of a query, or of the null query where that is longer: a list is read with both."""
        return max(len(self.prompt(query or NULL_QUERY).ids), len(self._null.ids))

    def prompt(self, query: str) -> Prompt:
        """The prompt of one query: only what follows the documents is tokenized."""
        if query == NULL_QUERY:
            return self._null
        if query != self._latest[0]:
            self._latest = query, self._complete(query)
        return self._latest[1]

    def _complete(self, query: str) -> Prompt:
        if self._listed is not None:
            return self._tokenizer._complete(self._template, self._listed, query)
        tail, (start, end) = self._tokenizer._tail(self._template, query)
        offsets, before = [*self.offsets, *[(0, 0)] * len(tail)], len(self.ids)
        return Prompt([*self.ids, *tail], self.documents, before, Span(before + start, before + end), offsets)


class PromptTokenizer:
    """Tokenizes prompts so that no control token can come from a caller's text.

    The caller's tokenizer is read once and left as found; not thread-safe (fast tokenizers are not).

    Raises:
        TypeError: the tokenizer is not a fast one: spans need character offsets.

    >>> PromptTokenizer(tokenizer).count("<|im_start|>") > 1  # in a text these are characters, no control token
    True
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise TypeError(
                f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer "
                "(AutoTokenizer.from_pretrained gives one for every listed model)"
            )
        added = tokenizer.added_tokens_decoder
        self._control = {str(token): (index, token.lstrip, token.rstrip) for index, token in added.items()}
        self._control_text = re.compile(
            "(" + "|".join(re.escape(text) for text in sorted(self._control, key=len, reverse=True)) + ")"
            if self._control
            else "(?!)"
        )
        self._plain = without_added_tokens(backend, set(self._control))

    def count(self, text: str) -> int:
        """Number of tokens of a text read as plain text."""
        return len(self._encode(text)[0])

    def cut(self, text: str, max_tokens: int) -> str:
        """The beginning of a text, at most `max_tokens` tokens long, cut where a token ends."""
        ids, offsets = self._encode(text)
        return text if len(ids) <= max_tokens else text[: offsets[max_tokens][0]]

    def lay_out(self, template: PromptTemplate, contents: Sequence[str]) -> ListLayout:
        """A list laid into the prompt, tokenized once for every query that is asked of it.

        Args:
            template: what stands around the documents.
            contents: what stands after the label of each document.
        """
        return ListLayout(self, template, contents)

    def prompt(self, template: PromptTemplate, contents: Sequence[str], query: str) -> Prompt:
        """The listwise prompt over a list of documents, tokenized as a whole.

        Args:
            template: what stands around the documents.
            contents: what stands after the label of each document.
            query: the query, or NULL_QUERY.
        """
        return self._complete(template, self._list_text(template, contents), query)

    def opening(self, template: PromptTemplate) -> list[int]:
        """Tokens before the first document, for passages that are tokenized alone."""
        control_before, text = self._opening(template)
        return [*control_before, *self._encode(text + template.separator)[0]]

    def passage(self, content: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A document tokenized alone, under a constant label: token ids, and their characters from the label on."""
        return self._encode(CONSTANT_LABEL + content)

    def question(self, template: PromptTemplate, query: str) -> Question:
        """What follows the documents, for passages tokenized alone."""
        closing, control_after = self._split(template.suffix, at_start=False)
        before = template.separator + template.question(query)
        ids, offsets = self._encode(before + closing)
        start = next(index for index, (_, end) in enumerate(offsets) if end > len(template.separator))
        own = _tokens_of_query(offsets, len(before), query, Span(start, len(ids)))
        return Question([*ids, *control_after], start, own)

    def sentences(self, content: str, max_tokens: int) -> list[tuple[int, int]]:
        """Character ranges of pieces of at most `max_tokens` tokens, cut at sentence ends where there are any."""
        offsets = self._encode(content)[1]
        ends = [sentence_end.end() for sentence_end in _SENTENCE_END.finditer(content)]
        pieces, start, token = [], 0, 0
        while token + max_tokens < len(offsets):
            limit = offsets[token + max_tokens][0]
            cut = ends[bisect_right(ends, limit) - 1] if ends and ends[0] <= limit else 0
            cut = cut if cut > start else max(limit, start + 1)
            pieces.append((start, cut))
            start = cut
            while token < len(offsets) and offsets[token][0] < start:
                token += 1
        return [*pieces, (start, len(content))]

    def _list_text(self, template: PromptTemplate, contents: Sequence[str]) -> "_ListText":
        control_before, text = self._opening(template)
        documents = []
        for number, content in enumerate(contents, start=1):
            text += template.separator
            document = f"[{number}] {content}"
            documents.append((len(text), len(text) + len(document)))
            text += document
        return _ListText(control_before, text + template.separator, documents)

    def _complete(self, template: PromptTemplate, listed: "_ListText", query: str) -> Prompt:
        """List and query tokenized as one text; spans come from its character offsets."""
        control_before, text, characters = listed
        closing, control_after = self._split(template.suffix, at_start=False)
        before = text + template.question(query)
        ids, offsets = self._encode(before + closing)
        documents, relative = [], [(0, 0)] * len(ids)
        token = 0
        for start, end in characters:
            while token < len(ids) and offsets[token][1] <= start:
                token += 1
            first = token
            while token < len(ids) and offsets[token][0] < end:
                relative[token] = (max(offsets[token][0], start) - start, min(offsets[token][1], end) - start)
                token += 1
            documents.append(Span(first + len(control_before), token + len(control_before)))
        while token < len(ids) and offsets[token][1] <= len(text):
            token += 1
        start, end = _tokens_of_query(offsets, len(before), query, Span(token, len(ids)))
        return Prompt(
            ids=[*control_before, *ids, *control_after],
            documents=documents,
            query_start=token + len(control_before),
            query_tokens=Span(start + len(control_before), end + len(control_before)),
            offsets=[*[(0, 0)] * len(control_before), *relative, *[(0, 0)] * len(control_after)],
        )

    def _tail(self, template: PromptTemplate, query: str) -> tuple[list[int], Span]:
        """The query span, tokenized alone, and the query's own tokens in it."""
        closing, control_after = self._split(template.suffix, at_start=False)
        before = template.question(query)
        ids, offsets = self._encode(before + closing)
        return [*ids, *control_after], _tokens_of_query(offsets, len(before), query, Span(0, len(ids)))

    def _opening(self, template: PromptTemplate) -> tuple[list[int], str]:
        """Control tokens at the start, and the text between them and the first document."""
        text, control = self._split(template.prefix)
        return control, text + (_OPENING if text or control else _OPENING.lstrip())

    def _split(self, around: str, at_start: bool = True) -> tuple[str, list[int]]:
        """Prefix or suffix as (plain text that touches the documents' side, token ids of the rest)."""
        pieces = [piece for piece in self._control_text.split(around) if piece]
        controls = [index for index, piece in enumerate(pieces) if piece in self._control]
        if not controls:
            return around, []
        inner = pieces[controls[-1] + 1 :] if at_start else pieces[: controls[0]]
        outer = pieces[: controls[-1] + 1] if at_start else pieces[controls[0] :]
        ids: list[int] = []
        for piece, before, after in zip(outer, ["", *outer], [*outer[1:], ""], strict=False):
            if piece in self._control:
                ids.append(self._control[piece][0])
            else:
                ids += self._encode(self._stripped(piece, before, after))[0]
        text = "".join(inner)
        return self._stripped(text, outer[-1], "") if at_start else self._stripped(text, "", outer[0]), ids

    def _stripped(self, text: str, before: str, after: str) -> str:
        """Some added tokens swallow the white space beside them."""
        if self._control.get(before, (0, False, False))[2]:
            text = text.lstrip()
        if self._control.get(after, (0, False, False))[1]:
            text = text.rstrip()
        return text

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._plain.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
        return encoding.ids, encoding.offsets


def _tokens_of_query(offsets: Sequence[tuple[int, int]], end: int, query: str, query_span: Span) -> Span:
    """The tokens that hold characters of a query which ends at character `end`.

    The last token before the control tokens where there are none: some tokenizers drop characters that cannot be seen.
    """
    own = [index for index, (first, last) in enumerate(offsets) if first < end and last > end - len(query)]
    return Span(own[0], own[-1] + 1) if own else Span(query_span.end - 1, query_span.end)
