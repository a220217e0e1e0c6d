"""Optimizers and schedules that the phases share."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "cosine"]


def warmup_schedule(optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int | None, schedule: Schedule) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup_steps``, then constant, or a cosine to 5 % of the peak at ``total_steps``.

    Raises:
        ValueError: a cosine without a known end.
    """
    if schedule == "cosine" and (total_steps is None or total_steps < 1):
        raise ValueError("schedule='cosine' needs to know its end: set trainer.max_steps (or max_epochs), or use schedule='constant'.")

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup_steps + 1))
        if schedule == "constant":
            return warm
        progress = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def split_value_head(policy: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters of the policy proper and of its value head."""
    head = {id(parameter) for parameter in policy.value_head.parameters()}
    trained: Iterable[nn.Parameter] = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return [p for p in trained if id(p) not in head], [p for p in trained if id(p) in head]


def require_positive(**settings: float) -> None:
    """Raise a ValueError that names the first setting that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: must be above 0.")


def require_share(**settings: float) -> None:
    """Raise a ValueError that names the first setting outside [0, 1]."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must lie in [0, 1].")
