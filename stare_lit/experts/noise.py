"""Noise on what a demonstrator does, so that its data covers states beside its way."""

from collections.abc import Sequence

import torch
from torch import Tensor


def disturbed(action: Tensor, std: float, generators: Sequence[torch.Generator], limit: Sequence[float]) -> Tensor:
    """``action`` with Gaussian noise on its three translations, within the limits.

    Args:
        action: float32 [N, A].
        std: standard deviation, as a share of the longest step.
        generators: one for each of the N, so that an episode's noise depends on its own seed only.
        limit: greatest absolute value of each of the A numbers, in the environment's units.
    """
    high = torch.tensor(limit)
    noise = torch.zeros_like(action)
    noise[:, :3] = std * torch.stack([torch.randn(3, generator=generator) for generator in generators])
    return (action + noise * high).clamp(-high, high)
