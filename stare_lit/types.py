"""Types that every layer may share; torch only."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns.

    ``loss`` is the *sum* over the entries that count and ``weight`` their number, so that micro-batches and ranks add up exactly:
    the mean loss is ``sum(loss) / sum(weight)``. ``metrics`` holds detached scalars, each already a mean over this batch.
    """

    loss: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """``loss / weight``; 0 (with a gradient of 0) where nothing counts."""
        return self.loss / self.weight.clamp_min(torch.finfo(self.loss.dtype).tiny)


@runtime_checkable
class Policy(Protocol):
    """A vision-language-action policy over TensorDicts (see ``stare_lit.keys`` for the layout)."""

    @property
    def chunk_size(self) -> int:
        """Actions per decision."""

    @property
    def environment(self) -> dict[str, Any]:
        """Settings of ``make_env`` for an environment that it reads and steps: chunk and image size, which observation, which cameras."""

    def act(self, tensordict: Any, *, temperature: float, value: bool = False) -> Any:
        """Write action tokens, their log-probabilities and the chunk (and the state value); temperature 0 is greedy."""

    def evaluate_actions(self, tensordict: Any, *, temperature: float = 1.0, value: bool = False) -> Any:
        """Log-probabilities, entropy (and the state value) of the tokens that ``tensordict`` holds, with gradients."""


class Expert(Protocol):
    """A scripted demonstrator: reads privileged signals or simulator poses, acts in the policy's own action space."""

    def reset(self) -> None:
        """Forget the episode."""

    def act(self, env: Any) -> Tensor:
        """The next action, float32 [A] within the environment's limits, from the environment's privileged state."""
