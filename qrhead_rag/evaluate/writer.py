"""A generating model: one greedy answer to one prompt.

Used to measure answers from retrieved documents and to score copying heads; ranking does not need it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qrhead_rag.models.loading import load_generator


class Answer(NamedTuple):
    """The generated text, and whether the context was cut to fit the prompt.

    >>> Answer("At nine.", truncated=False).text
    'At nine.'
    """

    text: str
    truncated: bool


class Writer:
    """A causal language model with its tokenizer, for greedy answers to single questions.

    Args:
        model: with its output matrix.
        tokenizer: its chat template, if any, wraps the prompt.
        max_new_tokens: length of an answer.
        context_length: tokens of prompt and answer; by default from the model's configuration.

    >>> writer = Writer.from_pretrained()  # doctest: +SKIP
    >>> writer.answer("The ferry leaves at nine.", "When does the ferry leave?").text  # doctest: +SKIP
    'The ferry leaves at nine.'
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 64,
        context_length: int | None = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.max_new_tokens = max_new_tokens
        config = model.config.get_text_config()
        self.context_length = context_length or getattr(config, "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> "Writer":
        """Load a whole model; None is the embedded one.

        Args:
            name: hub id or folder.
            device: None takes an accelerator where there is one.
            dtype: None is float32 on CPU and the checkpoint's own elsewhere.
            max_new_tokens: length of an answer.
            options: for transformers' `from_pretrained` (revision, trust_remote_code …).

        Raises:
            OSError: no such model.
        """
        model, tokenizer = load_generator(name, device=device, dtype=dtype or "auto", **options)
        if dtype is None and model.device.type == "cpu":
            model.float()
        return cls(model, tokenizer, max_new_tokens=max_new_tokens)

    def answer(self, context: str, question: str) -> Answer:
        """Answer a question about a context; a context that does not fit is cut at its end.

        Args:
            context: the source text; it comes first.
            question: the question with any instruction; never cut.
        """
        ids = self._prompt(f"{context}\n\n{question}")
        room = None if self.context_length is None else self.context_length - self.max_new_tokens
        truncated = room is not None and len(ids) > room
        if room is not None and truncated:
            tokens = self.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
            around = len(self._prompt(f"\n\n{question}"))
            # a cut text may take a few tokens more than it did within the whole
            kept = max(0, room - around - 8)
            end = tokens["offset_mapping"][kept][0] if kept < len(tokens["input_ids"]) else len(context)
            ids = self._prompt(f"{context[:end]}\n\n{question}")
        return Answer(self.tokenizer.decode(self.generate(ids), skip_special_tokens=True).strip(), truncated)

    def _prompt(self, text: str) -> list[int]:
        return list(self.tokenizer(self.render(text), add_special_tokens=False)["input_ids"])

    def render(self, text: str) -> str:
        """The text as a user's message, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            return text
        rendered: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return rendered

    @torch.inference_mode()
    def generate(self, ids: list[int]) -> list[int]:
        """The tokens that follow, chosen greedily, without the end token."""
        prompt = torch.tensor([ids], device=self.model.device)  # (1, tokens)
        ends = self.model.generation_config.eos_token_id
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        )
        new: list[int] = output[0, len(ids) :].tolist()
        ends = set(ends if isinstance(ends, list) else [ends])
        return new[: next((index for index, token in enumerate(new) if token in ends), len(new))]
