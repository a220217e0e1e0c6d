"""Rollouts of the policy that enters the preference phase: several episodes from each of many initial states, kept on disk."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tensordict import NestedKey, TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.data.trajectories import Trajectories, TrajectoryMetadata, TrajectoryWriter
from stare_lit.envs.factory import make_env
from stare_lit.envs.robots import robot_of
from stare_lit.envs.rollout import MASK, run_episodes
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.envs.transforms import InstructionText

SAMPLE = "sample"
"""Column of the episode table: which of the episodes from this initial state, int64."""

KEPT: tuple[NestedKey, ...] = (
    keys.OBSERVATION,
    keys.INSTRUCTION_ID,
    keys.INSTRUCTION_TOKENS,
    keys.EPISODE_SEED,
    keys.SIGNALS,
    keys.VLA_ACTION,
    *(keys.next_(key) for key in (keys.SIGNALS, keys.NUM_STEPS, keys.SUCCESS)),
)
"""What a rollout keeps of each decision."""

EPISODES_PER_SHARD = 32


@dataclass(frozen=True)
class RolloutSettings:
    """Which episodes are sampled.

    Args:
        num_states: initial states (episode seeds ``first_seed``, ``first_seed + 1``, ... of the training range).
        num_samples: episodes from each; a pair needs two.
        first_seed: the default leaves the seeds of demonstrations alone, which the policy knows by heart.
        temperature: of the sampling; 0 would sample the same episode every time.
        num_envs: episodes that run side by side.
        num_workers: processes that they are spread over; None leaves it to the environment factory.
    """

    num_states: int = 64
    num_samples: int = 8
    first_seed: int = 500_000
    temperature: float = 1.0
    num_envs: int = 8
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_states", 1), ("num_samples", 2), ("num_envs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
        low, high = SEED_RANGES["train"]
        if not low <= self.first_seed <= high - self.num_states:
            raise ValueError(f"first_seed={self.first_seed} with num_states={self.num_states}: the training range has the seeds {low}..{high - 1}")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: must be above 0, for greedy episodes from one initial state are all alike")

    @property
    def episodes(self) -> list[tuple[int, int]]:
        """(seed, sample) of every episode, all samples of a state together."""
        return [(self.first_seed + state, sample) for state in range(self.num_states) for sample in range(self.num_samples)]


def rollout_folder(root: str | Path, task: str, policy: nn.Module) -> Path:
    """Where the rollouts of this policy lie below ``root``: rollouts of other weights are never taken for its own."""
    return Path(root) / f"{task}-{policy_fingerprint(policy)[:12]}"


def collect_rollouts(
    policy: nn.Module,
    folder: str | Path,
    settings: RolloutSettings,
    *,
    task: str,
    image_size: int | None = None,
    env_maker: Callable[[], EnvBase] | None = None,
    show_progress: bool = True,
    verify: bool = False,
) -> Trajectories:
    """Sample the episodes that ``folder`` still lacks; atomic by shards, so a call after a kill goes on where the last one stopped.

    Args:
        policy: a ``types.Policy``; runs in eval mode on the device where it lies.
        folder: made where absent.
        settings: which episodes.
        task, image_size: what the folder must hold, the image side in pixels (the policy's own by default).
        env_maker: called only where an episode is missing; None is the environment factory.
        show_progress: a bar over episodes.
        verify: compare the SHA-256 of everything that was stored before.

    Returns:
        The folder's trajectories; ``select_episodes`` picks those of ``settings``, for there may be more.

    Raises:
        ValueError: the folder holds rollouts of another policy, task, chunk or image size, or temperature.
    """
    environment: Any = policy.environment
    image_size = environment["image_size"] if image_size is None else image_size
    config = {"policy": policy_fingerprint(policy), "temperature": settings.temperature}
    expected = {"task": task, "image_size": image_size, "chunk_size": policy.chunk_size, "kind": "rollouts", **config}
    if (Path(folder) / "metadata.json").exists():
        stored = Trajectories(folder, verify=verify, **expected)
        if not _missing(stored, settings):
            return stored
    if env_maker is None:
        own = {"image_size": image_size, "terminate_on_success": not robot_of(task).judged_at_end}
        env_maker = partial(make_env, task, settings.num_envs, num_workers=settings.num_workers, **environment | own)
    env = env_maker()
    try:
        metadata = TrajectoryMetadata(
            task=task,
            action_dim=env.full_action_spec[keys.ACTION_CHUNK].shape[-1],
            chunk_size=policy.chunk_size,
            control_mode=robot_of(task).control_mode,
            image_size=image_size,
            instructions=next(part.instructions for part in env.transform if isinstance(part, InstructionText)),
            kind="rollouts",
            config=config,
        )
        with TrajectoryWriter(folder, metadata) as writer, evaluating(policy), Progress(disable=not show_progress) as progress:
            missing = _missing(writer.stored, settings)
            bar = progress.add_task(f"rollouts of {task}", total=len(settings.episodes), completed=len(settings.episodes) - len(missing))
            size = math.ceil(EPISODES_PER_SHARD / settings.num_envs) * settings.num_envs
            for start in range(0, len(missing), size):
                _append(writer, env, policy, settings.temperature, missing[start : start + size], lambda done: progress.advance(bar, done))
            return writer.stored
    finally:
        env.close()


def select_episodes(trajectories: Trajectories, settings: RolloutSettings) -> torch.Tensor:
    """Indices int64 of the stored episodes that ``settings`` name, in the order of ``settings.episodes``."""
    place = {pair: index for index, pair in enumerate(_stored_episodes(trajectories))}
    return torch.tensor([place[pair] for pair in settings.episodes if pair in place], dtype=torch.long)


def policy_fingerprint(policy: nn.Module) -> str:
    """SHA-256 of how the policy reads and acts (its config, but for where its tokenizer lies), and of all weights and buffers (names, dtypes, shapes, bytes),
    as hexadecimal digits."""
    config: Any = policy.config
    digest = hashlib.sha256(json.dumps({**config.to_dict(), "tokenizer": None}, sort_keys=True).encode())
    for name, value in sorted(policy.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def evaluating(policy: nn.Module):
    """Eval mode inside, the mode from before outside."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def _append(
    writer: TrajectoryWriter, env: EnvBase, policy: nn.Module, temperature: float, episodes: Sequence[tuple[int, int]], progress: Callable[[int], None]
) -> None:
    """One shard; the random numbers depend on its first episode alone, so that a resumed collection samples what an unbroken one would."""
    device = next(policy.parameters()).device

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        return policy.act(tensordict.to(device), temperature=temperature)

    seed, sample = episodes[0]
    with torch.random.fork_rng():
        torch.manual_seed(hash((seed, sample)) % 2**63)
        rollouts = run_episodes(env, act, [seed for seed, _ in episodes], keep=KEPT, progress=progress)
    mask = rollouts.pop(MASK)
    writer.append_episodes(rollouts, mask, extra={SAMPLE: torch.tensor([sample for _, sample in episodes])})


def _missing(trajectories: Trajectories, settings: RolloutSettings) -> list[tuple[int, int]]:
    have = set(_stored_episodes(trajectories))
    return [pair for pair in settings.episodes if pair not in have]


def _stored_episodes(trajectories: Trajectories) -> list[tuple[int, int]]:
    if not trajectories.num_episodes:
        return []
    return list(zip(trajectories.episodes["seed"].tolist(), trajectories.episodes[SAMPLE].tolist(), strict=True))
