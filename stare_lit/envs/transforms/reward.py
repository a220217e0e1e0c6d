"""The reward of a decision: discounted inside the chunk, shaped by the stage potential."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Transform

from stare_lit import keys
from stare_lit.envs.transforms.stage import PotentialOf, StageTracker
from stare_lit.stages.calculator import PotentialForm, PotentialMode, Terminal, shaping
from stare_lit.stages.spec import StageSpec

RewardMode = Literal["sparse", "dense", "potential", "stage"]

SPARSE_REWARD = "sparse_reward"
"""Key (under ``next``) of the unshaped ``R = sum_{i<h} gamma^i r_i``, float32 [*B, 1], in every mode."""


@dataclass(frozen=True)
class RewardConfig:
    """What the learner is paid. Defaults are StA-PPO's; ``mode="sparse"`` is plain PPO's.

    Args:
        mode: "sparse" (success only), "dense" (the environment's own), "potential" (sparse, shaped by the whole task's potential) or
            "stage" (sparse, shaped by the stage potential).
        gamma: discount of one environment step; use the learner's.
        coefficient: c, weight of the shaping; 0 or more.
        stage_mode: "cumulative" (Phi rises over the stages), "bare" (each stage starts anew: the paper's letter) or "reset" (bare, but
            no shaping on a decision that changes the stage). Read in mode "stage".
        form: potential inside a stage: "sigmoid" (0.5 to 0.73: the paper's letter), "sigmoid_scaled" or "linear" (both 0 to 1).
        terminal: potential of a terminal state: "zero" leaves the best policy as it is; "keep" is the paper's letter.
        bootstrap_truncation: whether a time limit keeps its next potential, because the learner bootstraps its next value there. False
            where the learner treats truncation as an end.
        monotone: whether the stage may only rise.
        shaping_gamma: discount inside the shaping (ours); null: ``gamma``, the potential that leaves the best policy as it is. That one pays
            nothing to a policy that never succeeds, once its critic knows the potential: V = -Phi, and every advantage is 0. With 1 the
            progress itself is paid, so that learning can start from nothing; take ``terminal: keep`` with it, so that success is progress too.
    """

    mode: RewardMode = "stage"
    gamma: float = 0.99
    coefficient: float = 1.0
    stage_mode: PotentialMode = "cumulative"
    form: PotentialForm = "sigmoid"
    terminal: Terminal = "zero"
    bootstrap_truncation: bool = True
    monotone: bool = False
    shaping_gamma: float | None = None

    def __post_init__(self) -> None:
        choices = {"mode": RewardMode, "stage_mode": PotentialMode, "form": PotentialForm, "terminal": Terminal}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose from {get_args(allowed)}")
        for name in ("gamma", "shaping_gamma"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}: must lie in [0, 1]")
        if not 0.0 <= self.coefficient < math.inf:
            raise ValueError(f"coefficient={self.coefficient}: the weight of the shaping must be finite and at least 0 (0 pays none)")
        if self.shaping_gamma is not None and not self.shaped:
            raise ValueError(f"shaping_gamma={self.shaping_gamma}: mode={self.mode!r} has no shaping; leave it out, or choose mode 'stage' or 'potential'")

    @property
    def shaped(self) -> bool:
        """Whether a potential enters the reward."""
        return self.mode in ("potential", "stage")


class StageReward(Transform):
    """Writes ``("next", "reward")`` of a decision of h = ``num_steps`` steps, and the unshaped part as ``("next", "sparse_reward")``.

    ``R = sum_{i<h} gamma^i r_i`` from ``step_reward`` (modes "potential" and "stage" add ``F = c (gamma^h Phi' - Phi)``, see
    ``stages.calculator.shaping``; "dense" takes ``dense_reward`` instead). Needs a ``StageTracker`` before it where it shapes.

    Raises:
        ValueError: when the specs are read, where the environment lacks what the mode reads.
    """

    def __init__(self, config: RewardConfig) -> None:
        super().__init__(in_keys=[keys.STEP_REWARD], out_keys=[keys.REWARD, SPARSE_REWARD])
        self.config = config

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        config = self.config
        step_reward = next_tensordict.get(keys.STEP_REWARD)
        discount = config.gamma ** torch.arange(step_reward.shape[-1], device=step_reward.device, dtype=step_reward.dtype)
        reward = sparse = (step_reward * discount).sum(-1, keepdim=True)
        if config.mode == "dense":
            reward = (next_tensordict.get(keys.DENSE_REWARD) * discount).sum(-1, keepdim=True)
        if config.shaped:
            reward = sparse + self._shaping(tensordict, next_tensordict).unsqueeze(-1)
        next_tensordict.set(SPARSE_REWARD, sparse)
        return next_tensordict.set(keys.REWARD, reward)

    def _shaping(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> Tensor:
        """F of the decision, float32 [*B]."""
        config = self.config
        crossed = None
        if config.mode == "stage" and config.stage_mode == "reset":
            crossed = tensordict.get(keys.STAGE_INDEX) != next_tensordict.get(keys.STAGE_INDEX)
        return shaping(
            tensordict.get(keys.POTENTIAL),
            next_tensordict.get(keys.POTENTIAL),
            gamma=config.gamma if config.shaping_gamma is None else config.shaping_gamma,
            num_steps=next_tensordict.get(keys.NUM_STEPS).squeeze(-1),
            terminated=next_tensordict.get(keys.TERMINATED).squeeze(-1),
            truncated=next_tensordict.get(keys.TRUNCATED).squeeze(-1),
            coefficient=config.coefficient,
            terminal=config.terminal,
            bootstrap_truncation=config.bootstrap_truncation,
            crossed=crossed,
        )

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        observed = output_spec["full_observation_spec"].keys()
        if self.config.mode == "dense" and keys.DENSE_REWARD not in observed:
            raise ValueError("mode='dense' reads the environment's dense reward, which it does not publish: make it with dense_reward=True (Panda tasks only)")
        if self.config.shaped and keys.POTENTIAL not in observed:
            raise ValueError(f"mode={self.config.mode!r} reads the potential: put a StageTracker before the StageReward, or use stage_transforms")
        rewards = output_spec["full_reward_spec"]
        rewards[SPARSE_REWARD] = Unbounded(shape=rewards[keys.REWARD].shape, device=rewards.device)
        return output_spec


def stage_transforms(spec: StageSpec, config: RewardConfig) -> tuple[StageTracker, StageReward]:
    """The two transforms of a task, agreeing with each other, in order."""
    potential_of: PotentialOf = "whole_task" if config.mode == "potential" else "stage"
    tracker = StageTracker(spec, monotone=config.monotone, potential_of=potential_of, stage_mode=config.stage_mode, form=config.form)
    return tracker, StageReward(config)
