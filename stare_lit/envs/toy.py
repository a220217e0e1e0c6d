"""The toy world of ``toy_world`` as a TorchRL environment with the keys of ``stare_lit.keys``: for tests, notebooks and machines without Vulkan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs import toy_world as world
from stare_lit.envs.perturbations import DISTRACTORS, Perturbation, draws, free_places
from stare_lit.envs.signals import TOLD_SUCCESS

ACTION_DIM = 7
CLEARANCE = world.TARGET_RADIUS + world.THING_HALF_SIZE  # m from the lines between block and pads to a distractor's centre


class ToyEnv(EnvBase):
    """``num_envs`` worlds in one batch; a decision executes a chunk of up to ``chunk_size`` steps and stops early where an episode ends.

    ``reset(seed=...)`` takes one episode seed for each episode that starts (a single integer where one does) and determines the
    initial states; without it seeds come from ``seed_range`` by the environment's own generator (``set_seed``). A ``_reset`` mask resets
    part of the batch; a ``_step`` mask leaves the others where they are.

    Args:
        num_envs: batch size.
        chunk_size: H, steps in a chunk.
        image_size: side of the picture in pixels.
        observation: "image" (picture and proprioception) or "state" (the privileged low-dimensional vector in place of both).
        terminate_on_success: end the episode with success (reward 1 once). Otherwise it runs to its limit and the reward is the change of
            the success flag.
        dense_reward: also publish ``dense_reward``, 1 minus the mean of tanh(5 d) over the distances (metres) of gripper to block and block
            to target, summed over the steps of the chunk.
        seed_range: [low, high) of the seeds drawn.
        max_episode_steps: time limit.
        perturbation: what differs from the task as it is; here distractors are only drawn.
    """

    task = "Toy-v0"
    action_dim = ACTION_DIM
    action_limit = (1.0,) * ACTION_DIM
    instructions: tuple[str, ...] = world.INSTRUCTIONS
    signal_names: tuple[str, ...] = world.SIGNALS

    def __init__(
        self,
        num_envs: int = 1,
        *,
        chunk_size: int = 1,
        image_size: int = 32,
        observation: Literal["image", "state"] = "image",
        terminate_on_success: bool = True,
        dense_reward: bool = False,
        seed_range: tuple[int, int] = (0, 1_000_000),
        max_episode_steps: int = 30,
        perturbation: Perturbation = Perturbation(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in {"num_envs": num_envs, "chunk_size": chunk_size, "image_size": image_size, "max_episode_steps": max_episode_steps}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if observation not in ("image", "state"):
            raise ValueError(f"observation={observation!r}: choose 'image' or 'state'")
        if not 0 <= seed_range[0] < seed_range[1]:
            raise ValueError(f"seed_range={seed_range}: needs 0 <= low < high")
        perturbation.check(self.task, world.INSTRUCTIONS, observation=observation)
        super().__init__(device=device, batch_size=[num_envs])
        self.perturbation, self.instructions = perturbation, perturbation.instructions_of(self.task, world.INSTRUCTIONS)
        self._look, self._told = _look(perturbation), _told_pads(self.instructions)
        self.signal_names = world.SIGNALS if self._told is None else (*world.SIGNALS, TOLD_SUCCESS)
        self.chunk_size = chunk_size
        self.image_size = image_size
        self.observation = observation
        self.terminate_on_success = terminate_on_success
        self.dense_reward = dense_reward
        self.seed_range = seed_range
        self.max_episode_steps = max_episode_steps
        self._generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        self._state: world.ToyState | None = None
        self._make_specs()

    def _make_specs(self) -> None:
        num, device = self.batch_size[0], self.device
        flag = {"shape": (num, 1), "dtype": torch.bool, "device": device}
        if self.observation == "image":
            picture = Bounded(0, 255, shape=(num, 3, self.image_size, self.image_size), dtype=torch.uint8, device=device)
            seen = Composite(image=picture, state=Unbounded((num, 4), device=device), shape=(num,))
        else:
            seen = Composite(state=Unbounded((num, 11), device=device), shape=(num,))
        outcome = {
            keys.STEP_REWARD: Unbounded((num, self.chunk_size), device=device),
            keys.NUM_STEPS: Bounded(0, self.chunk_size, shape=(num, 1), dtype=torch.int64, device=device),
            keys.SUCCESS: Binary(**flag),
        }
        if self.dense_reward:
            outcome[keys.DENSE_REWARD] = Unbounded((num, self.chunk_size), device=device)
        self.observation_spec = Composite(
            {
                keys.OBSERVATION: seen,
                keys.SIGNALS: Composite({name: Unbounded((num,), device=device) for name in self.signal_names}, shape=(num,)),
                keys.INSTRUCTION_ID: Categorical(len(self.instructions), shape=(num,), dtype=torch.int64, device=device),
                keys.EPISODE_SEED: Unbounded((num,), dtype=torch.int64, device=device),
                **outcome,
            },
            shape=(num,),
        )
        self.action_spec = Composite({keys.ACTION_CHUNK: Bounded(-1, 1, shape=(num, self.chunk_size, ACTION_DIM), device=device)}, shape=(num,))
        self.reward_spec = Unbounded((num, 1), device=device)
        self.done_spec = Composite({key: Binary(**flag) for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)}, shape=(num,))

    @property
    def world_state(self) -> world.ToyState:
        """The present state of all worlds (privileged: for experts and tests)."""
        if self._state is None:
            raise RuntimeError("no state before the first reset: call reset() once")
        return self._state

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, seed: int | Sequence[int] | Tensor | None = None, exact: bool = True) -> TensorDict:
        num = self.batch_size[0]
        mask = tensordict.get("_reset", None) if tensordict is not None else None
        mask = torch.ones(num, dtype=torch.bool, device=self.device) if mask is None or self._state is None else mask.reshape(num)
        starting = mask.cpu()
        seeds = torch.zeros(num, dtype=torch.int64)
        seeds[starting] = self._episode_seeds(seed, int(starting.sum()))
        started = world.initial_state(seeds.tolist(), self.device)
        if self.perturbation.num_distractors:
            things = _things(started, seeds, self.perturbation.num_distractors)
            before = self._look.things
            self._look = replace(self._look, things=things if before is None else torch.where(mask[:, None, None], things, before))
        seeds = seeds.to(self.device)
        if starting.all():
            self._state, self._seeds = started, seeds
        else:
            self._state, self._seeds = world.select(mask, started, self.world_state), torch.where(mask, seeds, self._seeds)
        result = self._observe()
        for key, spec in self.observation_spec.items():
            if key not in result.keys():  # the outcomes of a decision: none yet
                result.set(key, spec.zero())
        for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED):
            result.set(key, torch.zeros(num, 1, dtype=torch.bool, device=self.device))
        return result

    def _episode_seeds(self, seed: int | Sequence[int] | Tensor | None, num: int) -> Tensor:
        """int64 [num]: the seeds given, checked, or drawn."""
        if seed is None:
            return torch.randint(*self.seed_range, (num,), generator=self._generator)
        seeds = torch.as_tensor(seed, dtype=torch.int64, device="cpu").reshape(-1)
        if len(seeds) != num:
            raise ValueError(f"seed has {len(seeds)} entries but {num} episodes start: give one seed for each")
        if (seeds < 0).any():
            raise ValueError(f"seed={seed}: episode seeds must not be negative")
        return seeds

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        state = self.world_state
        active = tensordict.get("_step", None)
        active = torch.ones_like(state.success) if active is None else active.reshape(state.success.shape)
        rewards, executed, dense = [], [], []
        chunk = self.perturbation.disturbed(tensordict.get(keys.ACTION_CHUNK), self._seeds, state.steps, self.action_limit)
        for action in chunk.unbind(1):
            after = world.select(active, world.advance(state, action), state)
            rewards.append(after.success.float() - state.success.float())
            executed.append(active)
            if self.dense_reward:
                dense.append(torch.where(active, _dense_reward(after), 0.0))
            state = after
            terminated, truncated = self._ends(state)
            active = active & ~terminated & ~truncated
        self._state = state
        step_reward = torch.stack(rewards, -1)
        result = self._observe()
        result.set(keys.STEP_REWARD, step_reward)
        result.set(keys.REWARD, step_reward.sum(-1, keepdim=True))  # undiscounted; StageReward discounts inside the chunk
        result.set(keys.NUM_STEPS, torch.stack(executed, -1).sum(-1, keepdim=True))
        result.set(keys.SUCCESS, state.success[:, None])
        if self.dense_reward:
            result.set(keys.DENSE_REWARD, torch.stack(dense, -1))
        for key, value in ((keys.TERMINATED, terminated), (keys.TRUNCATED, truncated), (keys.DONE, terminated | truncated)):
            result.set(key, value[:, None])
        return result

    def _ends(self, state: world.ToyState) -> tuple[Tensor, Tensor]:
        """Whether the episode has ended by success, and whether by the time limit alone; bool [N] each."""
        terminated = state.success if self.terminate_on_success else torch.zeros_like(state.success)
        return terminated, (state.steps >= self.max_episode_steps) & ~terminated

    def _observe(self) -> TensorDict:
        state = self.world_state
        if self.observation == "image":
            seen = {"image": world.render(state, self.image_size, self._look), "state": world.proprioception(state)}
        else:
            seen = {"state": world.full_state(state)}
        signals = world.measure(state)
        if self._told is not None:
            signals[TOLD_SUCCESS] = world.solved(replace(state, instruction=self._told.to(self.device)[state.instruction])).float()
        content = {keys.OBSERVATION: seen, keys.SIGNALS: signals, keys.INSTRUCTION_ID: state.instruction, keys.EPISODE_SEED: self._seeds}
        return TensorDict(content, batch_size=self.batch_size, device=self.device)


def _dense_reward(state: world.ToyState) -> Tensor:
    signals = world.measure(state)
    return 1 - (torch.tanh(5 * signals["tcp_to_object"]) + torch.tanh(5 * signals["object_to_final"])) / 2


def _told_pads(instructions: Sequence[str]) -> Tensor | None:
    """int64 [2]: the pad that the words in place of each instruction name; None where they name none, or the instruction's own."""
    told = [world.INSTRUCTIONS.index(text) for text in instructions if text in world.INSTRUCTIONS]
    return torch.tensor(told) if len(told) == len(instructions) and told != list(range(len(told))) else None


def _look(perturbation: Perturbation) -> world.Look:
    """How ``perturbation`` has the worlds drawn, but for the distractors, which are each episode's own."""
    _, left, up = perturbation.camera_translation
    look = world.Look(shift=(-left, up), light=perturbation.light)
    if perturbation.table_colour is not None:
        look = replace(look, table=tuple(255 * value for value in perturbation.table_colour))
    if perturbation.object_colour is not None:
        look = replace(look, block=tuple(255 * value for value in perturbation.object_colour))
    return look


def _things(state: world.ToyState, seeds: Tensor, num: int) -> Tensor:
    """float32 [N, num, 5]: place and colour of the distractors of the episodes ``seeds`` that start in ``state``."""
    rows = []
    for block, pads, seed in zip(state.block[:, :2].tolist(), state.pads.tolist(), seeds.tolist(), strict=True):
        generator = draws(seed, DISTRACTORS)
        lines = np.array([[block, pad] for pad in pads])
        edge = world.REACH_XY
        places = free_places(generator, num, lines, low=(-edge, -edge), high=(edge, edge), clearance=CLEARANCE, gap=2 * world.THING_HALF_SIZE)
        rows.append(np.concatenate([places, generator.uniform(0, 255, (num, 3))], axis=1))
    return torch.tensor(np.array(rows), dtype=torch.float32, device=state.block.device)
