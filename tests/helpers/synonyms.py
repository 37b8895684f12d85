"""A corpus whose sentences share meanings and no words, and a tiny model of which two heads know the meanings.

The other heads of its first two layers take a subject for the next one.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

KNOWING = ((0, 1), (1, 2))
_WORDS, _HEAD, _TURNING = 8, 64, 12  # words of a subject; numbers of a head; those of them that turn fast with position


def synonym_corpus(subjects: int) -> list[str]:
    """A passage a subject: one sentence says its words, two say other words of the same meanings."""

    def words(form, subject, numbers):
        return " ".join(f"{form}{subject}x{number}" for number in numbers)

    return [
        f"{words('B', subject, range(4))}. {words('A', subject, range(_WORDS))}. {words('B', subject, range(4, _WORDS))}."
        for subject in range(subjects)
    ]


def synonym_model(subjects: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The words A and B of a number have one embedding; the heads of KNOWING look for what is embedded alike."""
    size = subjects * _WORDS  # of an embedding
    numbers = [f"{subject}x{number}" for subject in range(subjects) for number in range(_WORDS)]
    vocabulary = ["[UNK]", ".", *(f"{form}{number}" for form in "AB" for number in numbers)]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=_HEAD,
        max_position_embeddings=512,
        rope_theta=1e12,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.01)
        meanings = torch.linalg.qr(torch.randn(size, size)).Q
        model.model.embed_tokens.weight[2:] = meanings.repeat(2, 1)
        next_subject = meanings.roll(-_WORDS, 0).T @ meanings  # from a meaning to that of the next subject
        for layer, head in ((layer, head) for layer in range(2) for head in range(4)):
            looks = torch.randn(_HEAD, size) / 8
            for half in (0, _HEAD // 2):
                looks[half : half + _TURNING // 2] = 0
            attention, rows = model.model.layers[layer].self_attn, slice(head * _HEAD, (head + 1) * _HEAD)
            attention.k_proj.weight[rows] = 2 * looks
            attention.q_proj.weight[rows] = 2 * looks if (layer, head) in KNOWING else 2 * looks @ next_subject
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
