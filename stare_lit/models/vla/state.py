"""The state as the policy reads it: normalised by statistics that travel with the weights."""

import torch
from torch import Tensor, nn

SMALLEST_STD = 0.02
"""Metres, radians, or their rates: an entry that varied less counts as having varied this much, for it may vary more later."""
LARGEST = 10.0
"""Standard deviations at which a normalised entry is cut off."""


class NormalizedLinear(nn.Linear):
    """Linear layer on ``(x - mean) / std``; as it is made, mean 0 and std 1.

    Raw, a cube that lies 2 cm elsewhere is hardly seen beside joint angles of 2 rad, and a small policy spends its first rounds on scaling it up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))

    @property
    def calibrated(self) -> bool:
        """Whether statistics were set."""
        return bool((self.mean != 0).any() or (self.std != 1).any())

    @torch.no_grad()
    def calibrate(self, states: Tensor) -> None:
        """Take mean and standard deviation of the rows ``states`` [N, in_features]. Raises ValueError for another shape, or values that are not finite."""
        if states.ndim != 2 or states.shape[1] != self.in_features or len(states) < 2 or not torch.isfinite(states).all():
            raise ValueError(f"states: {list(states.shape)}, must be [N, {self.in_features}] with N >= 2 and finite")
        self.mean.copy_(states.mean(dim=0))
        self.std.copy_(states.std(dim=0).clamp_min(SMALLEST_STD))

    def forward(self, state: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return super().forward(((state - self.mean) / self.std).clamp(-LARGEST, LARGEST))
