"""Runs ManiSkill's own PPO baseline, its file unmodified, on CPU environments; a process of its own, started by `ppo_baseline.py`.

Replaced for the run: ``gymnasium.make`` and ``ManiSkillVectorEnv`` (by stock environments in gymnasium's ``AsyncVectorEnv``, see ``stock_env.py``)
and TensorBoard's ``SummaryWriter`` (by nothing). Its own evaluation then runs the validation seeds, and is what `ppo_baseline.py` records.
"""

import argparse
import runpy
import sys
import time
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import gymnasium
import torch
from gymnasium import spaces
from record import Curve, add_arguments
from stock_env import StockVectorEnv


class Asked:
    """What the baseline gets from ``gymnasium.make``: a note of what it asked for."""

    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, task: str, *, num_envs: int, control_mode: str, **_: Any) -> None:
        self.task, self.num_envs, self.control_mode = task, num_envs, control_mode


class Evaluation:
    """Its evaluation environments: each reset begins the validation seeds anew, and the last of them adds a point to ``curve``.

    The simulators start when they are first needed, so that their start counts as evaluation.
    """

    def __init__(self, asked: Asked, training: StockVectorEnv, curve: Curve, num_workers: int) -> None:
        self.asked, self.training, self.curve, self.num_workers = asked, training, curve, num_workers
        self.envs: StockVectorEnv | None = None
        self.first = True

    def reset(self, *, seed: int | None = None) -> tuple[torch.Tensor | None, dict]:
        if self.first:  # once before training, for an observation that is never used
            self.first = False
            return None, {}
        self.began, self.success = time.monotonic(), []
        seeds = range(self.curve.limits.first_seed, self.curve.limits.first_seed + self.curve.limits.num_episodes)
        if self.envs is None:
            asked = self.asked
            self.envs = StockVectorEnv(asked.task, asked.control_mode, asked.num_envs, self.num_workers, ignore_terminations=True, seeds=seeds)
        return self.envs.reset()

    def step(self, action: torch.Tensor) -> tuple:
        result = self.envs.step(action)
        if "final_info" in result[-1]:
            self.success += result[-1]["final_info"]["episode"]["success_once"].tolist()
            if len(self.success) >= self.curve.limits.num_episodes and self.curve.evaluated(
                self.training.steps, self.success[: self.curve.limits.num_episodes], self.began
            ):
                self.close()
                self.training.close()
                raise SystemExit(0)
        return result

    def close(self) -> None:
        """Stop its processes."""
        if self.envs is not None:
            self.envs.close()


def run(baseline: Path, curve: Curve, num_workers: int, arguments: list[str]) -> None:
    """The file as ``__main__`` with ``arguments``, until the cell is over."""
    training: list[StockVectorEnv] = []

    def vector_env(asked: Asked, num_envs: int, *, ignore_terminations: bool, record_metrics: bool) -> StockVectorEnv | Evaluation:
        if training:
            return Evaluation(asked, training[0], curve, num_workers)
        training.append(StockVectorEnv(asked.task, asked.control_mode, num_envs, num_workers, ignore_terminations=ignore_terminations))
        return training[0]

    import mani_skill.vector.wrappers.gymnasium as wrappers

    gymnasium.make, wrappers.ManiSkillVectorEnv = Asked, vector_env  # type: ignore[misc]
    silent = types.ModuleType("torch.utils.tensorboard")
    silent.SummaryWriter = lambda *_: types.SimpleNamespace(add_scalar=lambda *_: None, add_text=lambda *_: None, close=lambda: None)  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = silent
    sys.argv = [str(baseline), *arguments]
    runpy.run_path(str(baseline), run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--num_workers", type=int, required=True)
    add_arguments(parser)
    parser.add_argument("arguments", nargs="*", help="of the baseline, after --")
    given = parser.parse_args()
    run(given.baseline, Curve.of(given), given.num_workers, given.arguments)


if __name__ == "__main__":
    main()
