"""Reductions over the entries that count. Masks are True = keep; ``None`` keeps everything; masked entries never matter, NaN included."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mask = Bool[Tensor, "*B"] | None
"""True = keep, ``None`` = all."""


def keep(x: Float[Tensor, "*B"], mask: Mask) -> Float[Tensor, "*B"]:
    """``x`` with exact zeros where masked (no NaN leaks, no gradient flows)."""
    return x if mask is None else torch.where(mask, x, torch.zeros_like(x))


def count(x: Float[Tensor, "*B"], mask: Mask) -> Float[Tensor, ""]:
    """Number of entries that count, as a float scalar."""
    return x.new_tensor(float(x.numel())) if mask is None else mask.sum().to(x.dtype)


def masked_mean(x: Float[Tensor, "*B"], mask: Mask = None) -> Float[Tensor, ""]:
    """``sum_i m_i x_i / sum_i m_i`` over all axes; 0 where nothing counts."""
    return keep(x, mask).sum() / count(x, mask).clamp_min(1.0)


def masked_standardize(
    x: Float[Tensor, "*B"], mask: Mask = None, eps: float = 1e-5, *, total: Callable[[Tensor], Tensor] = lambda sum: sum
) -> Float[Tensor, "*B"]:
    """``(x - mean) / (std + eps)`` over the entries that count (peer, RL4VLA: advantages over the whole batch); 0 where masked.

    The population standard deviation is taken, so a single entry gives 0 and not NaN. ``total`` adds up a sum over all processes that hold a share of
    the batch.
    """
    number = total(count(x, mask)).clamp_min(1.0)
    centred = keep(x - total(keep(x, mask).sum()) / number, mask)
    return centred / ((total(centred.square().sum()) / number).sqrt() + eps)
