"""How the lists of one retriever are read: every option, with its default."""

from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qrhead_rag.core.attention import PREFILL_TOKENS
from qrhead_rag.core.heads import KeyDtype, Readout

Layout: TypeAlias = Literal["given", "reversed"]


class ListOptions(BaseModel):
    """How lists are read. Validated once, where a retriever is made.

    Attributes:
        layout: "given" or "reversed": how a list is laid into the prompt (`listwise`).
        instruction: replaces the late instruction (another task, another language).
        context_length: tokens that a prompt may have; by default what the model's configuration says.
        window: documents in a sliding window, where a list is longer than the context; by default as many as fit.
        stride: documents that the window moves by; by default half a window.
        prefill_tokens: tokens run through the model at a time; bounds activation memory.
        piece_tokens: under `independent` and `late`, documents longer than this are encoded in pieces of at most this
            many tokens, cut at sentence ends, and the scores of the best three pieces are added up; None leaves them
            whole.
        batch_tokens: under `independent` and `late`, tokens that run through the model together: those of documents,
            padding, and the opening of the prompt before each; bounds memory, and how long another thread waits. None
            is what suits the device: 1024 on a CPU, on an accelerator as many as `batch_tokens_of` gives.
        cache_bytes: what the retriever may keep of lists and passages it has read, in bytes, and as much again of
            conversations, where memories use it; 0 keeps nothing.
        key_dtype: how `late` stores keys; "int8" takes half the bytes of "float16", with a scale for each dimension of
            a key head and piece.
        readout: "published" (calibrated attention, averaged over the query span) or "evidence" (what each token of the
            query finds beyond the instruction before it); None is the readout in which the heads were found.

    >>> ListOptions(piece_tokens=128).key_dtype
    'float16'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layout: Layout = "given"
    instruction: str | None = Field(default=None, min_length=1)
    context_length: int | None = Field(default=None, ge=1)
    window: int | None = Field(default=None, ge=2)
    stride: int | None = Field(default=None, ge=1)
    prefill_tokens: int = Field(default=PREFILL_TOKENS, ge=1)
    piece_tokens: int | None = Field(default=256, ge=16)
    batch_tokens: int | None = Field(default=None, ge=1)
    cache_bytes: int = Field(default=2**30, ge=0)
    key_dtype: KeyDtype = "float16"
    readout: Readout | None = None

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise ValueError(
                f"stride={self.stride} leaps over documents of window={self.window}; expected at most the window"
            )
        return self
