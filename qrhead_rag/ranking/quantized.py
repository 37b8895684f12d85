"""Keys in 8 bits: whole numbers from -127 to 127, and a scale for each key head of a passage.

Symmetric, as keys are read by products: no zero point. A scale is rounded to a number of bfloat16, so that its products
with the whole numbers are exact, and keys that have been through this once come through it unchanged.
"""

import torch
from torch import Tensor

_LARGEST = 127
_LEAST_SCALE = torch.finfo(torch.bfloat16).tiny  # of keys that are all zero


def quantize(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Round keys to 8 bits.

    Keys that are not finite get a scale that is not, so that `check_finite` tells whose they are when they are read.

    Args:
        keys: of one passage. Shape: (key heads, tokens, head size)

    Returns:
        The keys in int8, of the same shape, and what they are multiples of, in float32. Shape: (key heads,)

    >>> quantize(torch.tensor([[[254.0, -3.1]], [[0.0, 0.0]]]))[0].tolist()
    [[[127, -2]], [[0, 0]]]
    """
    keys = keys.float()
    largest = keys.abs().amax(dim=(-2, -1)) if keys.numel() else keys.new_zeros(keys.shape[:-2])
    # To the nearest, which may lie under largest / 127 by 2^-9 of it: the largest key is still rounded to 127.
    scales = (largest / _LARGEST).to(torch.bfloat16).float().clamp(min=_LEAST_SCALE)
    multiples = (keys / scales[..., None, None]).round().clamp(-_LARGEST, _LARGEST)
    return multiples.nan_to_num(0.0).to(torch.int8), scales


def dequantize(keys: Tensor, scales: Tensor) -> Tensor:
    """Keys as `quantize` rounded them, in float32.

    Args:
        keys: in int8. Shape: (key heads, tokens, head size)
        scales: of each key head, or of each of its tokens. Shape: (key heads,) or (key heads, tokens)

    Returns:
        Shape: (key heads, tokens, head size)

    >>> dequantize(*quantize(torch.tensor([[[254.0, -3.1]]]))).tolist()
    [[[254.0, -4.0]]]
    """
    return keys.float().mul_(scales.reshape(*scales.shape, *[1] * (keys.ndim - scales.ndim)))
