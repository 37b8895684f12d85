"""A fingerprint of a model's weights: what was computed with others of the same name is not taken for its own."""

import hashlib

import torch
from transformers import PreTrainedModel

from qrhead_rag.core.model_view import find_decoder, layer_list

_SAMPLE = 64  # numbers of each tensor


def weights_fingerprint(model: PreTrainedModel, num_layers: int) -> str:
    """A digest of a sample of every weight that runs up to a layer.

    It is the same for a whole model and for one that was loaded without the layers above or without its output matrix,
    and for float32 and bfloat16 copies of a checkpoint in bfloat16. It is another for a fine-tune.

    Args:
        model: the decoder.
        num_layers: how many of its first layers count.

    >>> weights_fingerprint(model, 2) == weights_fingerprint(model, 2) != weights_fingerprint(model, 3)
    True
    """
    decoder, digest = find_decoder(model), hashlib.sha256()
    layers, _ = layer_list(decoder)
    parts = [name for name, _ in decoder.named_children()]
    before = parts[: parts.index(layers)]  # what stands behind the layers, such as the last norm, does not run
    for name, weight in decoder.state_dict().items():
        part, _, inner = name.partition(".")
        if part not in before and not (part == layers and int(inner.partition(".")[0]) < num_layers):
            continue
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_meta:  # offloaded to disk by accelerate
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // _SAMPLE)].to("cpu", torch.bfloat16)
            digest.update(str(sample.tolist()).encode())
    return digest.hexdigest()
