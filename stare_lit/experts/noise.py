"""Noise on what a demonstrator does, so that its data covers states beside its way."""

from collections.abc import Sequence

import torch
from torch import Tensor

SLIP = 3
"""Actions: long enough for a WidowX's fingers to close on nothing, or to let something fall."""


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


def jolted(action: Tensor, probability: float, generators: Sequence[torch.Generator], limit: Sequence[float]) -> Tensor:
    """``action`` whose translations are, by chance, random ones instead: up to the longest step along each axis.

    Args:
        action, generators, limit: as of `disturbed`.
        probability: of each of the N to be jolted.
    """
    chance, *moves = torch.stack([torch.rand(4, generator=generator) for generator in generators]).unbind(1)
    jolt = action.clone()
    jolt[:, :3] = (2 * torch.stack(moves, 1) - 1) * torch.tensor(limit[:3])
    return torch.where((chance < probability)[:, None], jolt, action)


def slipping(left: Tensor, probability: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Actions int64 [N] for which each gripper does the opposite of what it is told, this one among them.

    Args:
        left: what this gave for the action before, zeros at first.
        probability: with which a gripper that obeys begins to slip, for `SLIP` actions.
        generators: as of `disturbed`.
    """
    begins = torch.stack([torch.rand((), generator=generator) for generator in generators]) < probability
    return torch.where(left > 1, left - 1, SLIP * begins)
