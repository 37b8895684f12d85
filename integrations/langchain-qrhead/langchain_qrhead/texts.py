"""The texts of a message, which may be replaced while all else of it stays: ids, calls, images, the order of blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from qrhead_rag.frameworks.tool_calls import block_ids

_TEXT = ("text", "input_text", "output_text")
_OF_RESULTS = ("content", "output")


def texts_of(message: BaseMessage) -> tuple[str, ...]:
    """Content that is text, the text of its blocks, and that of results in blocks, in their order.

    >>> from langchain_core.messages import ToolMessage
    >>> texts_of(ToolMessage([{"type": "text", "text": "They sleep."}, {"type": "image", "id": "a"}], tool_call_id="b"))
    ('They sleep.',)
    """
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    _change(message.content, note)
    return tuple(texts)


def with_texts(message: BaseMessage, texts: Sequence[str] | None) -> BaseMessage:
    """A copy with other texts in place of those of `texts_of`; the message itself where there are none.

    >>> from langchain_core.messages import HumanMessage
    >>> with_texts(HumanMessage("Good morning.", id="a"), ["Good evening."])
    HumanMessage(content='Good evening.', additional_kwargs={}, response_metadata={}, id='a')
    """
    if texts is None:
        return message
    new = iter(texts)
    return message.model_copy(update={"content": _change(message.content, lambda _: next(new))})


def _change(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, list):
        return [_change_block(block, change) for block in content]
    return content


def _change_block(block: Any, change: Callable[[str], str]) -> Any:
    if isinstance(block, str):
        return change(block)
    if not isinstance(block, Mapping):
        return block
    if block.get("type") in _TEXT and isinstance(block.get("text"), str):
        return {**block, "text": change(block["text"])}
    if block_ids(block)[1]:
        return {**block, **{key: _change(block[key], change) for key in _OF_RESULTS if key in block}}
    return block
