"""Noise on what a demonstrator does, so that its data covers states beside its way."""

from collections.abc import Sequence

import torch
from torch import Tensor

START = 3
"""Actions: most of them that are jolts at the beginning of an episode."""

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


def jolted(action: Tensor, probability: Tensor, generators: Sequence[torch.Generator], limit: Sequence[float], moves: Sequence[int]) -> Tensor:
    """``action`` whose moves are, by chance, random ones instead: up to the longest step.

    Args:
        action, generators, limit: as of `disturbed`.
        probability: float32 [N], of each to be jolted.
        moves: which numbers of the action are random then.
    """
    chance, *drawn = torch.stack([torch.rand(1 + len(moves), generator=generator) for generator in generators]).unbind(1)
    jolt = action.clone()
    jolt[:, moves] = (2 * torch.stack(drawn, 1) - 1) * torch.tensor(limit)[list(moves)]
    return torch.where((chance < probability)[:, None], jolt, action)


def random_starts(generators: Sequence[torch.Generator]) -> Tensor:
    """Jolts int64 [N] with which each episode begins, up to `START`: where the arm has been no longer tells where it has to go."""
    return torch.stack([torch.randint(START + 1, (), generator=generator) for generator in generators])


def slipping(left: Tensor, probability: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Actions int64 [N] for which each gripper does the opposite of what it is told, this one among them.

    Args:
        left: what this gave for the action before, zeros at first.
        probability: with which a gripper that obeys begins to slip, for `SLIP` actions.
        generators: as of `disturbed`.
    """
    begins = torch.stack([torch.rand((), generator=generator) for generator in generators]) < probability
    return torch.where(left > 1, left - 1, SLIP * begins)
