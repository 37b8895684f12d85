"""QRHeadMemory: a chat memory of the recent messages and the older ones that are relevant to the question."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CitationBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.memory import Memory
from llama_index.core.prompts import RichPromptTemplate
from pydantic import Field, PrivateAttr, field_validator

from qrhead_rag.frameworks.conversation import KEEP_LAST, KeptMessage, Message, TurnCap, choose_messages
from qrhead_rag.frameworks.history import HistoryScorerOptions, rank_history
from qrhead_rag.frameworks.scorer import warnings_of_threads
from qrhead_rag.frameworks.tool_calls import ids_answered, ids_made

_SYSTEM = (MessageRole.SYSTEM, MessageRole.DEVELOPER)
_COUNTED = ("text", "image", "audio", "video", "document", "cache")  # by Memory


class QRHeadMemory(HistoryScorerOptions, Memory):
    """A Memory that searches the whole conversation, archived messages included, for turns relevant to the input.

    Its messages fit `token_limit`: system messages and the last turn always, then the last `keep_last` messages, then
    older turns by relevance, whole (user, assistant, tool calls and results) and in their order. With memory blocks
    the history gets the share `chat_history_token_ratio` of the limit. The store is not changed.

    ScorerOptions choose the model: model, heads, mode (here `late`), layout, instruction, device, dtype, options, or
    `scorer`, a loaded QRRetriever, which may be shared.

    Attributes:
        keep_last: number of latest messages that are kept regardless of relevance, with their whole turns.
        max_turn_tokens: what a turn may cost by itself; the longest texts of one that costs more are shown cut to the
            sentences that matter to the input. The last user message is never cut. None cuts nothing.

    >>> memory = QRHeadMemory.from_defaults(token_limit=2000)
    >>> memory.put(ChatMessage(role="user", content="When does the ferry leave?"))
    >>> [message.content for message in memory.get()]
    ['When does the ferry leave?']
    """

    keep_last: int = Field(default=KEEP_LAST, ge=1)
    max_turn_tokens: int | None = Field(default=None, ge=1)
    _last_reasons: tuple[KeptMessage, ...] = PrivateAttr(default=())

    @classmethod
    def class_name(cls) -> str:
        """Name under which the memory is serialized."""
        return "QRHeadMemory"

    @field_validator("memory_blocks_template", mode="before")
    @classmethod
    def _template_from_dict(cls, value: Any) -> Any:
        # Memory.to_dict writes a template in a form that Memory.from_dict does not accept.
        return RichPromptTemplate(value["template_str"]) if isinstance(value, dict) else value

    @classmethod
    def from_defaults(cls, *args: Any, **options: Any) -> Self:
        """As Memory.from_defaults, with the additional options of this class."""
        names = [*HistoryScorerOptions.model_fields, "keep_last", "max_turn_tokens"]
        own = {name: options.pop(name) for name in names if name in options}
        memory = Memory.from_defaults(*args, **options)
        return cls(**{name: getattr(memory, name) for name in Memory.model_fields}, **own)

    async def aget(
        self, input: str | ChatMessage | None = None, initial_token_count: int = 0, **block_kwargs: Any
    ) -> list[ChatMessage]:
        """The selected messages, with the memory blocks.

        Args:
            input: ranks the turns; None is the last user message with text.
            initial_token_count: tokens of the limit that the caller's own prompt needs.
            block_kwargs: for the memory blocks.
        """
        history = [_detached(message) for message in await self.sql_store.get_messages(self.session_id, status=None)]
        limit = max(1, self.token_limit - initial_token_count)
        share = self.chat_history_token_ratio if self.memory_blocks else 1.0
        query = input.content if isinstance(input, ChatMessage) else input
        with warnings_of_threads():
            chosen = await asyncio.to_thread(self._choose, history, query, int(limit * share))
        messages = [_with_texts(history[why.index], why.parts) for why in chosen]
        self._last_reasons = tuple(chosen)
        selection = self.model_copy(update={"sql_store": _SelectedMessages(messages), "token_limit": limit})
        return await Memory.aget(selection, input=input, **block_kwargs)

    def last_reasons(self) -> tuple[KeptMessage, ...]:
        """Why each message that was shown last is there, in their order; the index is that in the whole history."""
        return self._last_reasons

    def _choose(self, history: list[ChatMessage], query: str | None, max_tokens: int) -> list[KeptMessage]:
        tokens = [self._estimate_token_count(message) for message in history]

        def count_cut(indices: Sequence[int], texts: Mapping[int, Sequence[str]]) -> int:
            cut = [_with_texts(history[index], texts[index]) for index in indices if index in texts]
            return sum(tokens[index] for index in indices if index not in texts) + self._estimate_token_count(cut)

        cap = None
        if self.max_turn_tokens is not None:
            cap = TurnCap(self.max_turn_tokens, count_cut, count_alone=tokens.__getitem__)
        return choose_messages(
            [_message(message) for message in history],
            query,
            count_tokens=lambda indices: sum(tokens[index] for index in indices),
            max_tokens=max_tokens,
            keep_last=self.keep_last,
            rank_turns=lambda question, texts: rank_history(self.load_scorer(), question, texts, cap is not None),
            cap=cap,
        )

    def _estimate_token_count(self, message_or_blocks: Any) -> int:
        """As Memory's, and the blocks that it counts as nothing: tool calls, thoughts, citations, and kinds to come."""
        items = message_or_blocks if isinstance(message_or_blocks, list) else [message_or_blocks]
        uncounted = sum(self._uncounted_tokens(item) for item in items if isinstance(item, ChatMessage))
        return super()._estimate_token_count(message_or_blocks) + uncounted

    def _uncounted_tokens(self, message: ChatMessage) -> int:
        tokens, counted_calls = 0, ids_made(message.additional_kwargs)
        for block in message.blocks:
            if isinstance(block, CitableBlock | CitationBlock):
                content: list[Any] = block.content if isinstance(block, CitableBlock) else [block.cited_content]
                tokens += super()._estimate_token_count(content)
                tokens += len(self.tokenizer_fn(f"{block.title} {block.source}"))
            elif isinstance(block, ThinkingBlock):
                tokens += len(self.tokenizer_fn(block.content or ""))
            elif block.block_type not in _COUNTED and getattr(block, "tool_call_id", None) not in counted_calls:
                tokens += len(self.tokenizer_fn(block.model_dump_json()))
        return tokens


def _message(message: ChatMessage) -> Message:
    extra = message.additional_kwargs
    calls = [block.tool_call_id for block in message.blocks if isinstance(block, ToolCallBlock)]
    answers = ids_answered(extra)
    if message.role == MessageRole.FUNCTION and not answers:  # the oldest format knows pairs by name
        answers = [extra["name"]] if extra.get("name") else []
    is_user = message.role == MessageRole.USER and not answers
    return Message(
        text=message.content or "",
        role="system" if message.role in _SYSTEM else "user" if is_user else "other",
        calls=tuple(call for call in [*calls, *ids_made(extra)] if call),
        answers=tuple(answers),
        parts=tuple(block.text for block in message.blocks if isinstance(block, TextBlock)),
    )


def _with_texts(message: ChatMessage, texts: Sequence[str] | None) -> ChatMessage:
    """A copy with other texts in its text blocks; the message itself where there are none."""
    if texts is None:
        return message
    new = iter(texts)
    blocks = [
        block.model_copy(update={"text": next(new)}) if isinstance(block, TextBlock) else block
        for block in message.blocks
    ]
    return message.model_copy(update={"blocks": blocks})


@dataclass(frozen=True)
class _SelectedMessages:
    """A store for `Memory.aget` that has the selected messages alone."""

    messages: Sequence[ChatMessage]

    async def get_messages(self, key: str, **_: Any) -> list[ChatMessage]:
        return list(self.messages)


def _detached(message: ChatMessage) -> ChatMessage:
    """A copy whose blocks may be edited: agents write their state into the text of the last message."""
    return message.model_copy(update={"blocks": [block.model_copy() for block in message.blocks]})
