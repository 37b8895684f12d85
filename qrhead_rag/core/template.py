"""What stands around the documents in the prompt of one family of chat models."""

from dataclasses import dataclass, replace
from typing import Self

from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above."

_JANUARY = {"%d": "01", "%b": "Jan", "%B": "January", "%m": "01", "%Y": "2025", "%A": "Wednesday", "%H": "00"}
# transformers passes no function to a template, so that the one for dates is replaced within it.
_HELD_STILL = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{sign}', '{value}')" for sign, value in _JANUARY.items())
    + " }}{% endmacro +%}"
)


@dataclass(frozen=True)
class PromptTemplate:
    """What stands around the documents for one family of chat models.

    `prefix` and `suffix` may hold control tokens; `separator` and `instruction` are plain text.

    >>> template = PromptTemplate(prefix="<|im_start|>user", suffix="<|im_end|>", instruction="Find the answer.")
    >>> template.question("When does the ferry leave?")
    'Find the answer.\\n\\nQuery: When does the ferry leave?'
    """

    prefix: str
    suffix: str
    separator: str = "\n\n"
    instruction: str = INSTRUCTION

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, instruction: str | None = None) -> Self:
        """The published prompt for ChatML and Llama 3, else the model's own chat template, else plain text."""
        control = set(tokenizer.get_added_vocab())
        template = tokenizer.chat_template
        if "<|start_header_id|>" in control:
            template_of_family = cls(
                prefix=f"{tokenizer.bos_token or ''}<|start_header_id|>user<|end_header_id|>",
                suffix="<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
                separator=" \n\n",
            )
        elif "<|im_start|>" in control and (template is None or "<|im_start|>" in str(template)):
            template_of_family = cls(prefix="<|im_start|>user", suffix="<|im_end|>\n<|im_start|>assistant")
        elif template is not None:
            template_of_family = cls(*_around_user_message(tokenizer))
        else:
            # Calling the tokenizer itself would switch off the caller's truncation and padding.
            sample = tokenizer.backend_tokenizer.encode("a")
            first = sample.ids[sample.attention_mask.index(1)]
            begin = tokenizer.bos_token if tokenizer.bos_token_id == first else None
            template_of_family = cls(prefix=begin or "", suffix="\n\nAnswer:")
        return template_of_family if instruction is None else replace(template_of_family, instruction=instruction)

    def question(self, query: str) -> str:
        """The query span up to the suffix: the late instruction and the query."""
        return f"{self.instruction}{self.separator}Query: {query}"


def _around_user_message(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the model's chat template puts before and after a user message, with every date held still."""
    message = "QRHEADMESSAGE"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        chat_template=_HELD_STILL + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=True,
        date_string="01 Jan 2025",
    )
    prefix, separator, suffix = str(rendered).rpartition(message)
    if not separator:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} does not show the user's message; "
            "expected a template that renders a single user message. Set tokenizer.chat_template to None to use the "
            "plain prompt"
        )
    return prefix, suffix
