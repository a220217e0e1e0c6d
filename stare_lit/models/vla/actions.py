"""Actions <-> window ids: q01/q99 normalisation (OpenVLA) around TorchRL's vocabulary-tail bins."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrl.data.vla import VocabTailActionTokenizer

CONSTANT_RANGE = 1e-6
"""A normalised dimension whose q01 and q99 are closer than this is constant."""

CERTAIN = 1e4
"""Logit margin of the one token a constant action dimension has: its log-probability and entropy are exactly 0 in float32."""


@dataclass(frozen=True)
class ActionStatistics:
    """Range of each action dimension in the demonstrations.

    Attributes:
        q01, q99: the 1 % and 99 % quantile, one per dimension, in the environment's units.
        mask: True where the dimension is normalised to [-1, 1] by them; False where it is passed through as it is.
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not len(self.q01) == len(self.q99) == len(self.mask):
            raise ValueError(f"q01, q99, mask: have {len(self.q01)}, {len(self.q99)}, {len(self.mask)} entries; each needs one per action dimension")
        if any(not low <= high for low, high in zip(self.q01, self.q99, strict=True)):
            raise ValueError(f"q99={self.q99}: must be finite and nowhere below q01={self.q01}")

    @classmethod
    def identity(cls, action_dim: int) -> "ActionStatistics":
        """Actions that already lie in [-1, 1]."""
        return cls((-1.0,) * action_dim, (1.0,) * action_dim, (True,) * action_dim)

    @classmethod
    def from_actions(cls, actions: Tensor) -> "ActionStatistics":
        """Quantiles of raw actions float [N, A]; every dimension is normalised."""
        if actions.ndim != 2 or not len(actions) or not torch.isfinite(actions).all():
            raise ValueError(f"actions: {list(actions.shape)}, must be [N, A] with N >= 1 and finite")
        ordered = actions.double().sort(dim=0).values
        low, high = ordered[round(0.01 * (len(ordered) - 1))], ordered[round(0.99 * (len(ordered) - 1))]
        return cls(tuple(low.tolist()), tuple(high.tolist()), (True,) * actions.shape[1])


class ActionCodec(nn.Module):
    """Encodes and decodes actions; holds the statistics as float64 buffers that no change of dtype touches.

    A constant dimension (q01 = q99, mask True) needs no decision: it is encoded as the middle bin and decoded as its constant.
    """

    q01: Tensor
    q99: Tensor
    mask: Tensor
    values: Tensor

    def __init__(self, action_dim: int, num_bins: int) -> None:
        super().__init__()
        self._active: tuple[int, ...] | None = None
        self.action_dim, self.num_bins = action_dim, num_bins
        self.tokenizer = VocabTailActionTokenizer(num_bins)
        for name, buffer in list(self.tokenizer.named_buffers()):
            self.tokenizer.register_buffer(name, buffer, persistent=False)
        edges = torch.linspace(-1.0, 1.0, num_bins, dtype=torch.float64)
        # window id w stands for centre num_bins - w - 1, clipped; ids 0 and 1 share the highest
        self.register_buffer("values", ((edges[:-1] + edges[1:]) / 2).flip(0)[torch.arange(num_bins).sub(1).clamp_min(0)], persistent=False)
        self.register_buffer("q01", torch.empty(action_dim, dtype=torch.float64))
        self.register_buffer("q99", torch.empty(action_dim, dtype=torch.float64))
        self.register_buffer("mask", torch.empty(action_dim, dtype=torch.bool))
        self.set(ActionStatistics.identity(action_dim))

    @property
    def middle(self) -> int:
        """Window id of the bin around 0."""
        return self.num_bins // 2

    def normal_prior(self, std: float) -> Tensor:
        """Logits float32 [num_bins] of a normal distribution around 0, ``-c^2 / (2 std^2)`` at the bins' centres c; ids 0 and 1 share one."""
        prior = -0.5 * (self.values / std).square()
        prior[:2] -= math.log(2)
        return prior.float()

    @property
    def active_dims(self) -> tuple[int, ...]:
        """Dimensions that are not constant (all of them, where all are constant)."""
        if self._active is None:
            constant = self.mask & (self.q99 - self.q01 < CONSTANT_RANGE)
            self._active = tuple(torch.nonzero(~constant).flatten().tolist()) or tuple(range(self.action_dim))
        return self._active

    def with_constant(self, logits: Tensor, chunk_size: int, offset: int) -> Tensor:
        """Logits of the active dimensions [N, H * active, V] -> of all dimensions [N, H * A, V]; window id 0 is vocabulary id ``offset``."""
        active = list(self.active_dims)
        if len(active) == self.action_dim:
            return logits
        full = logits.new_zeros(len(logits), chunk_size, self.action_dim, logits.shape[-1])
        full[..., offset + self.middle] = CERTAIN
        full[:, :, active] = logits.view(len(logits), chunk_size, len(active), -1)
        return full.flatten(1, 2)

    @property
    def statistics(self) -> ActionStatistics:
        """The statistics in use."""
        return ActionStatistics(tuple(self.q01.tolist()), tuple(self.q99.tolist()), tuple(self.mask.tolist()))

    def set(self, statistics: ActionStatistics) -> None:
        """Use ``statistics``. Raises ValueError where the number of dimensions differs."""
        if len(statistics.q01) != self.action_dim:
            raise ValueError(f"statistics: of {len(statistics.q01)} action dimensions, the policy has {self.action_dim}; use data of the same action space")
        for name in ("q01", "q99", "mask"):
            buffer = getattr(self, name)
            buffer.copy_(torch.tensor(getattr(statistics, name), dtype=buffer.dtype))
        self._active = None

    def encode(self, actions: Tensor) -> Tensor:
        """Actions [..., A] in the environment's units -> window ids int64 [..., A]."""
        span = self.q99 - self.q01
        constant = span < CONSTANT_RANGE
        normalized = torch.where(constant, 0.0, 2.0 * (actions.double() - self.q01) / torch.where(constant, 1.0, span) - 1.0)
        return self.tokenizer.encode(torch.where(self.mask, normalized, actions.double()).float())

    def decode(self, tokens: Tensor) -> Tensor:
        """Window ids int64 [..., A] -> actions float32 [..., A]: (c + 1) / 2 (q99 - q01) + q01 where the mask holds, else the bin centre c."""
        centre = self.values[tokens]
        return torch.where(self.mask, 0.5 * (centre + 1.0) * (self.q99 - self.q01) + self.q01, centre).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActionCodec":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != buffer.dtype:  # a change of dtype is for weights, not for statistics
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._active = None
