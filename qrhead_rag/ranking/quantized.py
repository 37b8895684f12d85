"""Keys in 8 bits: whole numbers from -127 to 127, and for each dimension of a key head a scale over a passage's tokens.

A few dimensions of a head are much larger than the rest, and one scale for all would round the rest coarsely
(benchmarks/reports/key_bits.md). Scales are in bfloat16: their products with the whole numbers are exact in float32,
so that keys that have been through this once come through it unchanged.
"""

import torch
from torch import Tensor

_LARGEST = 127
_LEAST_SCALE = torch.finfo(torch.bfloat16).tiny  # of keys that are all zero


def quantize(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Round keys to 8 bits.

    Keys that are not finite get a scale that is not, so that `check_finite` tells whose they are when they are read.

    Args:
        keys: of one passage. Shape: (key heads, tokens, head size); key heads that lie side by side are one

    Returns:
        The keys in int8, of the same shape, and what they are multiples of, in bfloat16. Shape: (key heads, head size)

    >>> quantize(torch.tensor([[[254.0, 0.0], [-3.1, 0.0]]]))[0].tolist()
    [[[127, 0], [-2, 0]]]
    """
    keys = keys.float()
    largest = keys.abs().amax(dim=1) if keys.numel() else keys.new_zeros(len(keys), keys.shape[2])
    # To the nearest, which may lie under largest / 127 by 2^-9 of it: the largest key is still rounded to 127.
    scales = (largest / _LARGEST).to(torch.bfloat16).clamp(min=_LEAST_SCALE)
    multiples = (keys / scales[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return multiples.nan_to_num(0.0).to(torch.int8), scales


def dequantize(keys: Tensor, scales: Tensor) -> Tensor:
    """Keys as `quantize` rounded them, in float32.

    Args:
        keys: in int8. Shape: (key heads, tokens, head size)
        scales: for all tokens or for each. Shape: (key heads, head size) or (key heads, tokens, head size)

    Returns:
        Shape: (key heads, tokens, head size)

    >>> dequantize(*quantize(torch.tensor([[[254.0, 0.0], [-3.1, 0.0]]]))).tolist()
    [[[254.0, 0.0], [-4.0, 0.0]]]
    """
    return keys.float().mul_(scales if scales.ndim == keys.ndim else scales[:, None])
