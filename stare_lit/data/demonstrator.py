"""What a demonstration is: a scripted expert that acts in the policy's own action space, from one seed to the end of its episode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.data.trajectories import TrajectoryMetadata
from stare_lit.envs.factory import TOY, check_renderer
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.robots import robot_of
from stare_lit.envs.signals import instructions_of
from stare_lit.experts.make import REVISIONS, make_demonstrator
from stare_lit.experts.noise import disturbed, jolted, random_starts, slipping
from stare_lit.types import Expert

EXECUTED_ACTION = "executed_action"
"""Key of the action that was executed: the expert's, plus noise. ``action`` is the expert's own one at the same state, the label to imitate."""

KEPT = (keys.OBSERVATION, keys.SIGNALS, keys.INSTRUCTION_ID, keys.EPISODE_SEED, keys.ACTION, EXECUTED_ACTION) + tuple(
    keys.next_(key) for key in (keys.SIGNALS, keys.REWARD, keys.SUCCESS, keys.TERMINATED, keys.TRUNCATED, keys.DONE)
)
ACTION_DIM = 7
HOLD = 10  # steps that the Bridge expert needs to let go and to rise, and a few of rest
TOY_BATCH = 64  # toy episodes run side by side
EPISODES_PER_BLOCK = 10  # ManiSkill episodes that a worker sends back together


@dataclass(frozen=True)
class DemoSettings:
    """What a demonstration is made with; sent to every worker and stored with the data.

    Args:
        task: "Toy-v0" or a ManiSkill3 task.
        image_size: pixels of the square camera image.
        action_noise: standard deviation of Gaussian noise on the three translations of each executed action (as a share of the longest
            step), for coverage around the demonstrations. The label stays the expert's noise-free action at the state that was visited (ours;
            the idea is DART's, arXiv 1703.09327). Rotations and gripper get none: not every expert would correct them.
        max_episode_steps: horizon within which a demonstration must succeed; None is the task's own.
        visuals: meshes of the ManiSkill renderer, see ``ManiSkillEnv``.
        observation: ``state`` records the privileged low-dimensional observation and renders nothing.
        cameras: names of the task's cameras; none is the robot's own one.
        gripper_noise: probability of each action with which the gripper begins to do the opposite of what it is told, for three actions: the label goes
            on saying what to do, so that the data shows how to go on from a gripper that closed on nothing or let something fall (ours).
        arm_noise: probability of each action with which the arm moves at random instead, up to its longest step along each axis (a WidowX turns, too):
            shows how to go on from where no demonstrator would go, such as low down beside the object. Above 0 an episode begins with up to three
            such moves: a tool that already turns says to which side, and a policy that goes by this never looks at the object (ours).
        disguised: share of the episodes that are drawn as the other task of a shared scene draws its own, see ``Perturbation``: for a policy of both, which
            would go by the places of marker and camera and pass over the instruction (ours).
    """

    task: str
    image_size: int = 64
    action_noise: float = 0.0
    max_episode_steps: int | None = None
    visuals: Literal["auto", "light", "exact"] = "auto"
    observation: Literal["image", "state"] = "image"
    cameras: tuple[str, ...] = ()
    gripper_noise: float = 0.0
    arm_noise: float = 0.0
    disguised: float = 0.0

    def __post_init__(self) -> None:
        if self.cameras and (self.observation == "state" or len(set(self.cameras)) < len(self.cameras)):
            raise ValueError(f"cameras={list(self.cameras)} with observation={self.observation!r}: name each once, for observation='image'")
        if self.action_noise < 0:
            raise ValueError(f"action_noise={self.action_noise}: a standard deviation; give 0 or more")
        for name, value in (("gripper_noise", self.gripper_noise), ("arm_noise", self.arm_noise)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: a probability; give 0 or more, and less than 1")
        self.perturbation.check(self.task, (), observation=self.observation)
        check_renderer(self.task, visuals=self.visuals, cameras=self.cameras)

    @property
    def perturbation(self) -> Perturbation:
        """What differs from the task as it is evaluated."""
        return Perturbation(disguised=self.disguised)

    @property
    def block(self) -> int:
        """Episodes that a worker runs and sends back together; fixed, for a run that goes on must run the same ones."""
        return TOY_BATCH if self.task == TOY else EPISODES_PER_BLOCK

    @property
    def hold(self) -> int:
        """Steps for which a success has to last: where it is judged at the end, a demonstration also shows how to let go and stay away."""
        return HOLD if self.task != TOY and robot_of(self.task).judged_at_end else 0

    @property
    def folder(self) -> Path:
        """Where such demonstrations lie unless told otherwise."""
        seen = "-".join([f"{self.image_size}px", *self.cameras]) if self.observation == "image" else "state"
        rare = "".join(
            f"-{part}{value:g}" for part, value in (("gripper", self.gripper_noise), ("arm", self.arm_noise), ("disguised", self.disguised)) if value
        )
        return Path("data/demos") / f"{self.task}-{seen}-noise{self.action_noise:g}{rare}"

    def metadata(self, seed_range: tuple[int, int]) -> TrajectoryMetadata:
        """What a folder of demonstrations from the seeds ``[low, high)`` says of itself."""
        config = {
            name: getattr(self, name) for name in ("action_noise", "max_episode_steps", "visuals", "observation", "gripper_noise", "arm_noise", "disguised")
        }
        config |= {"cameras": list(self.cameras), "seed_range": list(seed_range)}
        if self.task in REVISIONS:
            config["demonstrator"] = REVISIONS[self.task]
        return TrajectoryMetadata(self.task, ACTION_DIM, 1, robot_of(self.task).control_mode, self.image_size, instructions_of(self.task), config=config)

    def demonstrator(self) -> tuple[EnvBase, Expert]:
        """Environment and expert, in the process that runs them."""
        common: dict[str, Any] = {"image_size": self.image_size, "observation": self.observation, "perturbation": self.perturbation}
        common["terminate_on_success"] = not self.hold
        if self.max_episode_steps is not None:
            common["max_episode_steps"] = self.max_episode_steps
        return make_demonstrator(self.task, toy_batch=TOY_BATCH, visuals=self.visuals, cameras=self.cameras or None, **common)


def run_expert(
    env: EnvBase, expert: Expert, seeds: list[int], *, action_noise: float = 0.0, gripper_noise: float = 0.0, arm_noise: float = 0.0, hold: int = 0
) -> tuple[TensorDict, TensorDict]:
    """One episode from each seed: data [rows] of `KEPT`, episode after episode, and the episode table [E].

    Args:
        env: batch size [] (one episode after the other) or [N] (N at a time), ``chunk_size`` 1.
        action_noise, gripper_noise, arm_noise: see `DemoSettings`; drawn for each episode from its own seed.
        hold: see `DemoSettings`; an episode of an environment that does not end at success ends when success has lasted that long.
    """
    wave = env.batch_size.numel()
    noise = action_noise, gripper_noise, arm_noise
    parts = [_run_wave(env, expert, seeds[start : start + wave], noise, hold) for start in range(0, len(seeds), wave)]
    return torch.cat([data for data, _ in parts]), torch.cat([table for _, table in parts])


def _run_wave(env: EnvBase, expert: Expert, seeds: list[int], noise: tuple[float, float, float], hold: int) -> tuple[TensorDict, TensorDict]:
    num, (action_noise, gripper_noise, arm_noise) = env.batch_size.numel(), noise
    filled = seeds + [seeds[-1]] * (num - len(seeds))  # the copies are dropped again
    generators = [torch.Generator().manual_seed(seed) for seed in filled]
    starts = random_starts(generators) if arm_noise else torch.zeros(num, dtype=torch.int64)
    expert.reset()
    tensordict = env.reset(seed=filled)
    running, lasted, slips = torch.ones(num, dtype=torch.bool), torch.zeros(num, dtype=torch.int64), torch.zeros(num, dtype=torch.int64)
    rows: list[TensorDictBase] = []
    masks: list[Tensor] = []
    with torch.no_grad():
        while running.any():
            action = expert.act(env).reshape(num, ACTION_DIM).float()
            executed = disturbed(action, action_noise, generators, env.action_limit)
            if arm_noise:
                chance = torch.where(len(rows) < starts, 1.0, arm_noise)
                executed = jolted(executed, chance, generators, env.action_limit, robot_of(env.task).corrected)
            if gripper_noise:
                slips = slipping(slips, gripper_noise, generators)
                executed[:, -1] = torch.where(slips > 0, -executed[:, -1], executed[:, -1])
            tensordict.set(keys.ACTION_CHUNK, executed.reshape(*env.batch_size, 1, ACTION_DIM))
            if env.batch_size:
                tensordict.set("_step", running.clone())
            tensordict = env.step(tensordict)
            row = tensordict.reshape(num).set(keys.ACTION, action).set(EXECUTED_ACTION, executed)
            rows.append(row.select(*KEPT).clone())
            masks.append(running)
            lasted = torch.where(tensordict["next", keys.SUCCESS].reshape(num), lasted + 1, 0)
            running = running & ~tensordict["next", keys.DONE].reshape(num) & ((lasted <= hold) | (hold == 0))
            tensordict = step_mdp(tensordict)
    mask = torch.stack(masks, 1)[: len(seeds)]
    episodes: Any = torch.stack(rows, 1)[: len(seeds)]
    table = {
        "length": mask.sum(1),
        "seed": episodes[keys.EPISODE_SEED][:, 0],
        "success": episodes[keys.next_(keys.SUCCESS)].squeeze(-1).gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1),  # at the last step
        "instruction_id": episodes[keys.INSTRUCTION_ID][:, 0],
    }
    return episodes[mask], TensorDict(table, [len(seeds)])
