"""From tokens to decisions: only what the environment has executed counts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sum_executed(x: Float[Tensor, "*B H A"], num_steps: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """``sum_{i < h} sum_a x[i, a]``: a per-token quantity (log-probability) of one decision, over the h of its H steps that were executed.

    An episode that ends inside a chunk leaves tokens that never did anything; they must not earn a gradient. ``num_steps`` is h, 0..H;
    steps from h on do not matter, whatever they hold (NaN too).
    """
    executed = torch.arange(x.shape[-2], device=x.device) < num_steps.unsqueeze(-1)
    return torch.where(executed.unsqueeze(-1), x, torch.zeros_like(x)).sum((-2, -1))
