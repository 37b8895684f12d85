"""A retriever that ranks by shared words, for tests of what is done with a ranking: a real model, made by hand."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrhead_rag import QRRetriever

_SIZE = 128


class WordOverlap(QRRetriever):
    """Its one head attends from each word of the query to the same word in the passages.

    Attributes:
        read: every text that ran through the model, in order.
    """

    read: list[str]

    @classmethod
    def of(cls, *files: str) -> "WordOverlap":
        """A retriever that knows the words of some test files."""
        text = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
        words = sorted(set(re.findall(r"[a-z]+", text.lower())))
        retriever = cls(_model(len(words) + 1), _tokenizer(words), heads=[(0, 0)], mode="late", model_name="overlap")
        retriever.read = []
        retriever.model.get_input_embeddings().register_forward_pre_hook(retriever._note)
        return retriever

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.read += [" ".join(self.tokenizer.decode(row, skip_special_tokens=True).split()) for row in inputs[0]]

    def times_read(self, text: str) -> int:
        return sum(text in row for row in self.read)


def _model(num_words: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=num_words,
        hidden_size=_SIZE,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=_SIZE,
        max_position_embeddings=8192,
        rope_theta=1e12,
        pad_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    # half the dimensions turn too slowly for distance to matter: words live in those alone
    slow = [*range(_SIZE // 4, _SIZE // 2), *range(3 * _SIZE // 4, _SIZE)]
    words = torch.zeros(num_words, _SIZE)
    words[1:, slow] = torch.nn.functional.normalize(torch.randn(num_words - 1, len(slow), generator=generator), dim=-1)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(words)
        model.model.layers[0].self_attn.q_proj.weight.copy_(2 * torch.eye(_SIZE))
        model.model.layers[0].self_attn.k_proj.weight.copy_(torch.eye(_SIZE))
    return model


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A token for each word; what it does not know has no meaning."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[UNK]",
        pad_token="[UNK]",
        clean_up_tokenization_spaces=False,
    )
