"""Run a policy over given seeds to the full horizon and say how it did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs.robots import robot_of
from stare_lit.envs.rollout import MASK, run_episodes
from stare_lit.envs.signals import TOLD_SUCCESS
from stare_lit.evaluation.metrics import PairedGain, Rate, mean_or_nan, paired_gain, stage_funnel, stage_reached, wilson_rate
from stare_lit.stages.tasks import get_spec
from stare_lit.types import Policy

UPRIGHT = "upright"
"""Signal of the tasks whose own success test errs: the true geometry."""

OUTCOME = (keys.REWARD, keys.STEP_REWARD, keys.SUCCESS, keys.NUM_STEPS, keys.STAGE_INDEX, keys.TERMINATED)
KEEP = (*(keys.next_(key) for key in OUTCOME), ("next", keys.SIGNALS, UPRIGHT), ("next", keys.SIGNALS, TOLD_SUCCESS))


def measure_of(task: str) -> Literal["success_once", "success_at_end"]:
    """Which success counts on ``task``: at the last step where its benchmark judges then (SimplerEnv's Bridge tasks), at any step elsewhere."""
    return "success_at_end" if robot_of(task).judged_at_end else "success_once"


def full_horizon(own: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an environment for ``evaluate_policy``: a policy's ``own``, no end at success, and over both what was ``asked`` for.

    Raises:
        ValueError: episodes were asked to end at success, so that success_at_end would mean nothing.
    """
    if asked.get("terminate_on_success"):
        raise ValueError("environment: terminate_on_success=true would end episodes at success, and an evaluation runs them to the full horizon; leave it out")
    return {**own, "terminate_on_success": False, **asked}


@dataclass(frozen=True)
class Evaluation:
    """Outcomes of N episodes, entry i from ``seeds[i]``; times are in environment steps.

    ``time_to_success`` is nan without success; ``stages_done`` counts the stages an episode had completed at its best moment (K = all);
    ``episode_return`` is the undiscounted sparse return. ``truly_upright``: whether at the end of some decision the task's success and the ``upright``
    signal held together; None where the task has no such signal (LiftPegUpright-v1's success reads an Euler angle and errs both ways).
    ``told_success``: of a scene under the instruction of another task, whether what was told was done, at the end of some decision or of the last one as
    ``measure_of`` the task says; None where the instruction is the scene's own. All else is measured by the scene's own goal.
    ``environment``: settings that it was made with, where who made it says so.
    """

    task: str
    seeds: tuple[int, ...]
    temperature: float
    success_once: Tensor
    success_at_end: Tensor
    episode_return: Tensor
    length: Tensor
    time_to_success: Tensor
    stages_done: Tensor
    stage_names: tuple[str, ...]
    truly_upright: Tensor | None = None
    told_success: Tensor | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> Tensor:
        """Which episodes succeeded as their benchmark counts it (``measure_of``), [N]."""
        return getattr(self, measure_of(self.task))

    @property
    def success(self) -> Rate:
        """Share of episodes that ``succeeded``, with its interval."""
        return wilson_rate(int(self.succeeded.sum()), len(self.seeds))

    @property
    def upright(self) -> Rate | None:
        """Share of episodes with a success that the true geometry confirms; None where the task has no such signal."""
        return None if self.truly_upright is None else wilson_rate(int(self.truly_upright.sum()), len(self.seeds))

    @property
    def told(self) -> Rate | None:
        """Share of episodes in which what was told was done; None where that is the scene's own goal, whose share is ``success``."""
        return None if self.told_success is None else wilson_rate(int(self.told_success.sum()), len(self.seeds))

    @property
    def further(self) -> dict[str, Rate]:
        """Those of ``truly_upright`` and ``told_success`` that the task and the instruction have."""
        rates = {"truly_upright": self.upright, "told_success": self.told}
        return {name: rate for name, rate in rates.items() if rate is not None}

    @property
    def once(self) -> Rate:
        """Share of episodes with success at some step, with its interval."""
        return wilson_rate(int(self.success_once.sum()), len(self.seeds))

    @property
    def at_end(self) -> Rate:
        """Share of episodes with success at their last step, with its interval."""
        return wilson_rate(int(self.success_at_end.sum()), len(self.seeds))

    @property
    def funnel(self) -> dict[str, Rate]:
        """P(stage k done | stage k-1 done)."""
        return stage_funnel(self.stages_done, self.stage_names)

    @property
    def reached(self) -> dict[str, Rate]:
        """Share of all episodes that completed each stage at some moment."""
        return stage_reached(self.stages_done, self.stage_names)

    def gain_over(self, before: "Evaluation") -> PairedGain:
        """Paired gain in ``success``; ``ValueError`` unless both ran the same task from the same seeds."""
        if (self.task, self.seeds) != (before.task, before.seeds):
            raise ValueError("before: a paired gain needs the same task and seeds in both evaluations; evaluate both with the same --split and --num_episodes")
        return paired_gain(before.succeeded.tolist(), self.succeeded.tolist())

    def metrics(self) -> dict[str, float]:
        """Scalars to log, without a prefix."""
        return {
            "success": self.success.value,
            "success_once": self.once.value,
            "success_at_end": self.at_end.value,
            **{name: rate.value for name, rate in self.further.items()},
            "return": mean_or_nan(self.episode_return),
            "episode_length": mean_or_nan(self.length),
            "time_to_success": mean_or_nan(self.time_to_success),
            **{f"stage_reached/{name}": rate.value for name, rate in self.reached.items()},
            **{f"stage_funnel/{name}": rate.value for name, rate in self.funnel.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; inverse of :meth:`from_dict`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.tolist() if isinstance(value, Tensor) else list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Evaluation":
        """From :meth:`to_dict`'s values, also after a trip through JSON."""
        plain: dict[str, Any] = {"task": values["task"], "temperature": values["temperature"], "environment": values.get("environment", {})}
        plain |= {name: tuple(values[name]) for name in ("seeds", "stage_names")}
        measured = [name for name in cls.__dataclass_fields__ if name not in plain and values.get(name) is not None]
        return cls(**plain | {name: torch.tensor([float("nan") if x is None else x for x in values[name]]) for name in measured})


def evaluate_policy(
    policy: Policy,
    env: EnvBase,
    seeds: Sequence[int],
    *,
    task: str,
    temperature: float = 0.0,
    sampling_seed: int = 0,
    watch: Callable[[TensorDictBase], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """One episode of ``policy`` from each seed, to the full horizon; greedy at temperature 0.

    A module is put in eval mode and back; the global random state is left as it was (sampling draws from ``sampling_seed``).

    Args:
        env: batch [num_envs], from ``make_env`` with ``terminate_on_success=False``.
        task: the environment's task, for its stages and the report.
        watch: sees every observation TensorDict [num_envs] before the policy does (video).
        progress: called with the number of episodes just finished.

    Raises:
        ValueError: an episode ended at success, so that success_at_end would mean nothing.
    """
    module = policy if isinstance(policy, torch.nn.Module) else None
    device = next((p.device for p in module.parameters()), None) if module is not None else None
    was_training = module is not None and module.training

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        if watch is not None:
            watch(tensordict)
        return policy.act(tensordict if device is None else tensordict.to(device), temperature=temperature)

    try:
        if module is not None:
            module.eval()
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            torch.manual_seed(sampling_seed)
            episodes = run_episodes(env, act, seeds, keep=KEEP, progress=progress)
    finally:
        if module is not None:
            module.train(was_training)
    if bool(episodes["next", keys.TERMINATED].any()):
        raise ValueError("env ends its episodes at success: make it with terminate_on_success=False, so that success_at_end means something")
    return summarise(episodes, seeds, task=task, temperature=temperature, stage_names=get_spec(task).names)


def summarise(episodes: TensorDict, seeds: Sequence[int], *, task: str, temperature: float, stage_names: Sequence[str] = ()) -> Evaluation:
    """Outcomes from padded episodes [N, T] (see ``run_episodes``; padding zero, ``mask`` True = real).

    Success is read step by step from ``step_reward``, the change of the success flag at each executed step, so that a success inside a chunk counts.
    """
    episodes = episodes.cpu()
    mask, outcome = episodes[MASK], episodes["next"]
    num_steps = outcome[keys.NUM_STEPS].squeeze(-1)
    step_reward = outcome[keys.STEP_REWARD]
    flag = step_reward.flatten(1).cumsum(1).view_as(step_reward) > 0.5
    executed = torch.arange(step_reward.shape[-1]) < num_steps.unsqueeze(-1)
    flag = (flag | outcome[keys.SUCCESS] & (executed.cumsum(-1) == num_steps.unsqueeze(-1))) & executed  # the flag itself rules at a decision's end
    before = num_steps.cumsum(1) - num_steps
    when = (before.unsqueeze(-1) + executed.cumsum(-1)).double().masked_fill(~flag, float("inf")).flatten(1).amin(1)
    once = flag.flatten(1).any(1)
    last = mask.sum(1) - 1
    if keys.STAGE_INDEX in outcome.keys() and stage_names:
        stages_done = outcome[keys.STAGE_INDEX].masked_fill(~mask, 0).amax(1)
        stages_done = torch.where(once, len(stage_names), stages_done)  # success inside a chunk ends every stage too
    else:
        stages_done, stage_names = torch.zeros(len(seeds), dtype=torch.int64), ()
    upright = outcome.get((keys.SIGNALS, UPRIGHT), None)
    confirmed = None if upright is None else (outcome[keys.SUCCESS].squeeze(-1) & (upright > 0.5) & mask).any(1)
    told = outcome.get((keys.SIGNALS, TOLD_SUCCESS), None)
    if told is not None:
        told = (told > 0.5)[torch.arange(len(seeds)), last] if measure_of(task) == "success_at_end" else ((told > 0.5) & mask).any(1)
    return Evaluation(
        task=task,
        seeds=tuple(int(seed) for seed in seeds),
        temperature=temperature,
        success_once=once,
        success_at_end=outcome[keys.SUCCESS].squeeze(-1)[torch.arange(len(seeds)), last],
        episode_return=step_reward.sum((1, 2)),
        length=num_steps.sum(1),
        time_to_success=when.masked_fill(~once, float("nan")),
        stages_done=stages_done,
        stage_names=tuple(stage_names),
        truly_upright=confirmed,
        told_success=told,
    )
