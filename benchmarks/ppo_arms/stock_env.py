"""Stock ManiSkill environments on CPU physics behind the interface of its ``ManiSkillVectorEnv``: tensors, partial resets, final observations.

Nothing of this project steps them: ``gymnasium.make`` and ManiSkill's own ``CPUGymWrapper`` in gymnasium's ``AsyncVectorEnv``, several
environments in each of its processes, stepped in turn (as gymnasium's ``SyncVectorEnv`` does; one a process would need one process each).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

REAL_MAKE = gymnasium.make
HORIZON = 50


def make_stock(task: str, control_mode: str) -> gymnasium.Env:
    """One stock environment, numpy in and out, state observations, its normalised dense reward."""
    import mani_skill.envs  # noqa: F401  registers the tasks
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

    settings = {"obs_mode": "state", "control_mode": control_mode, "reward_mode": "normalized_dense", "sim_backend": "physx_cpu", "render_backend": "none"}
    return CPUGymWrapper(REAL_MAKE(task, **settings))


class Group(gymnasium.Env):
    """The environments of one process as one gymnasium environment that never ends: a step is a step of each, ends are told in the observation.

    ``seeds`` [waves][environments]: episodes to run, one wave after the other and then again; None draws them.
    """

    def __init__(self, task: str, control_mode: str, num: int, *, ignore_terminations: bool, seeds: Sequence[Sequence[int]] | None = None) -> None:
        torch.set_num_threads(1)
        self.make = lambda: make_stock(task, control_mode)
        self.envs, self.num = [self.make()], num  # the others at the first reset: AsyncVectorEnv also makes a group only to ask for its spaces
        self.ignore_terminations, self.seeds, self.waves = ignore_terminations, seeds, [0] * num
        each = self.envs[0].observation_space, self.envs[0].action_space

        def box(*shape: int) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, shape, np.float32)

        width = each[0].shape[0]
        flags = dict.fromkeys(("terminated", "truncated", "success"), box(num))
        self.observation_space = spaces.Dict({"obs": box(num, width), "final": box(num, width), "reward": box(num), "return": box(num), **flags})
        self.action_space = spaces.Box(np.stack([each[1].low] * num), np.stack([each[1].high] * num), dtype=np.float32)
        self.now = {name: np.zeros(space.shape, np.float32) for name, space in self.observation_space.items()}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        self.envs += [self.make() for _ in range(self.num - len(self.envs))]
        self.waves = [0] * self.num
        for name in ("terminated", "truncated"):
            self.now[name][:] = 0.0
        for i in range(len(self.envs)):
            self._begin(i, None if seed is None else seed + i)
        return self.now, {}

    def _begin(self, i: int, seed: int | None) -> None:
        if self.seeds is not None:
            seed = self.seeds[self.waves[i] % len(self.seeds)][i]
            self.waves[i] += 1
        self.now["obs"][i], _ = self.envs[i].reset(seed=seed)
        self.now["success"][i] = self.now["return"][i] = 0.0

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        now = self.now
        for i, env in enumerate(self.envs):
            if now["terminated"][i] or now["truncated"][i]:  # what was told with the step before belongs to the old episode
                now["success"][i] = now["return"][i] = 0.0
            observation, reward, terminated, truncated, info = env.step(action[i])
            terminated = bool(terminated) and not self.ignore_terminations
            now["obs"][i], now["reward"][i], now["terminated"][i], now["truncated"][i] = observation, reward, terminated, truncated
            now["success"][i] = max(now["success"][i], float(info["success"]))
            now["return"][i] += reward
            if terminated or truncated:
                now["final"][i] = observation
                told = now["success"][i], now["return"][i]
                self._begin(i, None)
                now["success"][i], now["return"][i] = told
        return now, 0.0, False, False, {}

    def close(self) -> None:
        for env in self.envs:
            env.close()


class StockVectorEnv:
    """What the baseline gets for ``ManiSkillVectorEnv(gym.make(...), num_envs)``: torch tensors [num_envs, ...] of ``num_workers`` processes."""

    def __init__(self, task: str, control_mode: str, num_envs: int, num_workers: int, *, ignore_terminations: bool, seeds: Sequence[int] | None = None) -> None:
        if num_envs % num_workers:
            raise ValueError(f"num_envs={num_envs} does not divide over num_workers={num_workers}; choose a multiple")
        each = num_envs // num_workers
        waves = None
        if seeds is not None:
            filled = [*seeds, *[seeds[-1]] * (-len(seeds) % num_envs)]
            waves = np.array(filled).reshape(-1, num_workers, each)
        self.num_envs = num_envs

        def group(worker: int) -> Any:
            own = None if waves is None else waves[:, worker].tolist()
            return lambda: Group(task, control_mode, each, ignore_terminations=ignore_terminations, seeds=own)

        self.processes = gymnasium.vector.AsyncVectorEnv([group(worker) for worker in range(num_workers)], shared_memory=True, context="fork")
        space, action = self.processes.single_observation_space["obs"], self.processes.single_action_space
        self.single_observation_space = spaces.Box(-np.inf, np.inf, space.shape[1:], np.float32)
        self.single_action_space = spaces.Box(action.low[0], action.high[0], dtype=np.float32)
        self._chunk = (num_workers, each, *self.single_action_space.shape)
        self._env = self
        self.steps = 0

    def get_wrapper_attr(self, name: str) -> Any:
        """Horizon of the tasks, as ManiSkill's helper asks for it."""
        if name != "max_episode_steps":
            raise AttributeError(name)
        return HORIZON

    def reset(self, *, seed: int | None = None) -> tuple[torch.Tensor, dict]:
        observation, _ = self.processes.reset(seed=None if seed is None else [1000 * seed + 100 * worker for worker in range(self._chunk[0])])
        return self._flat(observation["obs"]), {}

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict]:
        now, *_ = self.processes.step(action.cpu().numpy().reshape(self._chunk))
        self.steps += self.num_envs
        told = {name: self._flat(value) for name, value in now.items()}
        terminated, truncated = told["terminated"].bool(), told["truncated"].bool()
        infos: dict[str, Any] = {}
        if (done := terminated | truncated).any():
            episode = {"success_once": told["success"].bool(), "return": told["return"]}
            infos = {"final_info": {"episode": episode}, "_final_info": done, "final_observation": told["final"], "_final_observation": done}
        return told["obs"], told["reward"], terminated, truncated, infos

    def _flat(self, value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(value.reshape(self.num_envs, *value.shape[2:]).copy())

    def close(self) -> None:
        """Stop the processes."""
        self.processes.close()
