"""Tiny seeded models and a tokenizer, built in code: nothing is fetched."""

import json
from functools import cache
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
OTHER = (
    "{{ bos_token }}[date {{ strftime_now('%d %b %Y') }}]{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
CONTROL = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "other": (OTHER, ["<bos>", "<turn>", "</turn>"]),
    "plain": (None, ["<bos>"]),
}

_BASE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attn_implementation": None,
}
_WINDOW = {"sliding_window": 24}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": _WINDOW,
    # eager, since older releases of transformers run it under sdpa, which knows no soft cap
    "gemma2": _WINDOW
    | {
        "layer_types": _MIXED,
        "attn_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
        "attn_implementation": "eager",
    },
    "gemma3_text": _WINDOW | {"layer_types": _MIXED, "query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3},
    "gpt_oss": _WINDOW | {"layer_types": _MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "cohere2": _WINDOW | {"layer_types": _MIXED},
    "gpt_neox": {"rotary_pct": 0.5, "hidden_act": "gelu"},
}


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> PreTrainedModel:
    """A random model of a family, with weights large enough that its attention is far from uniform."""
    options = {**_BASE, **FAMILIES[family], **changes}
    attention = options.pop("attn_implementation")
    config = AutoConfig.for_model(family, **options)
    torch.manual_seed(seed)
    if attention is not None:
        config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
        elif "sinks" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@cache
def _trained(kind: str) -> str:
    text = [
        "The keeper of the lighthouse counts the ships that pass. " * 3,
        "Here are some paragraphs:\n\n[1] Query: N/A",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = CONTROL[kind][1]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    return str(tokenizer.to_str())


def tiny_tokenizer(kind: str = "chatml") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of about 300 tokens with the control tokens of a chat format."""
    template, control = CONTROL[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)),
        bos_token=control[0] if kind != "chatml" else None,
        eos_token=control[-1],
        additional_special_tokens=control,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_gguf(file: Path) -> None:
    """The tiny model and tokenizer as the file that an embedded model comes in."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(pairs["vocab"], key=pairs["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in CONTROL["chatml"][1] else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in pairs["merges"]])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_tiny(folder: Path) -> Path:
    """A tiny model with its tokenizer on disk, as users have them."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
