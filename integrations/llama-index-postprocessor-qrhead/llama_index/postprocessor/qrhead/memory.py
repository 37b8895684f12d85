"""QRHeadMemory: a chat memory of the recent messages and the older ones that are relevant to the question."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CitationBlock,
    MessageRole,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.memory import Memory
from llama_index.core.prompts import RichPromptTemplate
from pydantic import Field, field_validator

from qrhead_rag.frameworks.conversation import KEEP_LAST, HistoryScorerOptions, Message, choose_messages, rank_history
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

    >>> memory = QRHeadMemory.from_defaults(token_limit=2000)
    >>> memory.put(ChatMessage(role="user", content="When does the ferry leave?"))
    >>> [message.content for message in memory.get()]
    ['When does the ferry leave?']
    """

    keep_last: int = Field(default=KEEP_LAST, ge=1)

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
        own = {name: options.pop(name) for name in [*HistoryScorerOptions.model_fields, "keep_last"] if name in options}
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
            messages = await asyncio.to_thread(self._choose, history, query, int(limit * share))
        selection = self.model_copy(update={"sql_store": _SelectedMessages(messages), "token_limit": limit})
        return await Memory.aget(selection, input=input, **block_kwargs)

    def _choose(self, history: list[ChatMessage], query: str | None, max_tokens: int) -> list[ChatMessage]:
        tokens = [self._estimate_token_count(message) for message in history]
        chosen = choose_messages(
            [_message(message) for message in history],
            query,
            count_tokens=lambda indices: sum(tokens[index] for index in indices),
            max_tokens=max_tokens,
            keep_last=self.keep_last,
            rank_turns=lambda question, texts: rank_history(self.load_scorer(), question, texts),
        )
        return [history[index] for index in chosen]

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
    )


@dataclass(frozen=True)
class _SelectedMessages:
    """A store for `Memory.aget` that has the selected messages alone."""

    messages: Sequence[ChatMessage]

    async def get_messages(self, key: str, **_: Any) -> list[ChatMessage]:
        return list(self.messages)


def _detached(message: ChatMessage) -> ChatMessage:
    """A copy whose blocks may be edited: agents write their state into the text of the last message."""
    return message.model_copy(update={"blocks": [block.model_copy() for block in message.blocks]})
