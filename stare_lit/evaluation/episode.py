"""One episode, step by step, with what the stages say of it: what `stare stages` draws."""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.envs.robots import robot_of
from stare_lit.envs.transforms import InstructionText, RewardConfig, stage_transforms
from stare_lit.experts.make import make_demonstrator
from stare_lit.experts.noise import disturbed
from stare_lit.stages.tasks import get_spec
from stare_lit.types import Policy


@dataclass(frozen=True)
class Episode:
    """T decisions, so T + 1 states, of which state t lies ``time[t]`` environment steps after the reset.

    Attributes:
        task: environment id.
        seed: that the episode was reset with.
        instruction: in words.
        stage_names: the K stages in order.
        success: whether the task was solved, at the last step where its benchmark judges then, at any step elsewhere.
        time: int64 [T + 1].
        images: uint8 [T + 1, 3, H, W]; several cameras one below the other.
        stage_index: int64 [T + 1], K once all are done.
        stage_error, potential: float32 [T + 1], in [0, 1].
        reward, sparse_reward: float32 [T], of each decision; their difference is the shaping.
    """

    task: str
    seed: int
    instruction: str
    stage_names: tuple[str, ...]
    success: bool
    time: Tensor
    images: Tensor
    stage_index: Tensor
    stage_error: Tensor
    potential: Tensor
    reward: Tensor
    sparse_reward: Tensor

    def bands(self) -> list[tuple[int, int, int]]:
        """(stage index, first step, last step) of each stretch in one stage, in order; each ends where the next begins.

        The last decision often completes the task: a stretch of the last state alone is given one step beyond the episode, else nobody would see it.
        """
        starts = [0, *(self.stage_index.diff().nonzero().flatten() + 1).tolist()]
        first = self.time[starts].tolist()
        end = max(int(self.time[-1]), first[-1] + 1)
        return list(zip(self.stage_index[starts].tolist(), first, [*first[1:], end], strict=True))


def one_picture(images: Tensor | TensorDictBase) -> Tensor:
    """Images [..., 3, H, W], or by name those of several cameras, one below the other [..., 3, cameras * H, W]."""
    return images if isinstance(images, Tensor) else torch.cat([images[name] for name in sorted(images.keys())], dim=-2)


def record_episode(
    task: str,
    seed: int,
    *,
    policy: Policy | None = None,
    reward: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
    temperature: float = 0.0,
    action_noise: float = 0.0,
    terminate_on_success: bool = True,
    **settings: Any,
) -> Episode:
    """Run one episode.

    Args:
        task: environment id.
        seed: of the episode, and of all that is drawn in it.
        policy: who acts; without one the task's scripted expert.
        reward: what is drawn as reward; a mode without shaping shows none.
        temperature: of the policy's tokens; 0 is greedy.
        action_noise: standard deviation of Gaussian noise on the three translations of the expert's actions.
        terminate_on_success: end there, as training does; False runs to the horizon.
        settings: of the environment, such as ``image_size`` and ``visuals``.

    Raises:
        ValueError: an unknown task, noise for a policy, a temperature for the expert, the environment's dense reward, or a policy that sees no images.
    """
    if reward.mode == "dense":
        raise ValueError("reward.mode='dense': the environment's own reward holds no shaping to draw; choose 'stage', 'potential' or 'sparse'")
    if policy is not None and policy.environment["observation"] != "image":
        raise ValueError("policy: it reads the low-dimensional state and sees no images, of which the drawing is made; give a policy that does, or none")
    if action_noise < 0:
        raise ValueError(f"action_noise={action_noise}: a standard deviation; give 0 or more")
    if policy is not None and action_noise:
        raise ValueError(f"action_noise={action_noise}: is for the expert; a policy takes temperature")
    if policy is None and temperature:
        raise ValueError(f"temperature={temperature}: is for a policy, give one (a checkpoint); the expert takes action_noise")
    spec = get_spec(task)
    settings = ({} if policy is None else policy.environment) | settings | {"terminate_on_success": terminate_on_success}
    base, expert = make_demonstrator(task, **settings)
    env = TransformedEnv(base, Compose(*stage_transforms(spec, reward), InstructionText(base.instructions)))
    generator = torch.Generator().manual_seed(seed)

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        if policy is not None:
            return policy.act(tensordict, temperature=temperature)
        action = disturbed(expert.act(base).reshape(1, 7), action_noise, [generator], base.action_limit)
        return tensordict.set(keys.ACTION_CHUNK, action.reshape(*env.batch_size, 1, 7))

    try:
        tensordict = env.reset(seed=[seed])
        states: list[TensorDictBase] = [tensordict.clone()]
        decisions: list[TensorDictBase] = []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            while not decisions or not decisions[-1][keys.DONE].all():
                tensordict = env.step(act(tensordict))
                decisions.append(tensordict["next"].clone())
                states.append(decisions[-1])
                tensordict = step_mdp(tensordict)
    finally:
        env.close()

    def over(rows: list[TensorDictBase], key: Any) -> Tensor:
        return torch.stack([row[key].reshape(row[key].shape[len(env.batch_size) :]) for row in rows])

    steps, succeeds = over(decisions, keys.NUM_STEPS).flatten(), over(decisions, keys.SUCCESS).flatten()
    return Episode(
        task,
        seed,
        base.instructions[int(states[0][keys.INSTRUCTION_ID])],
        spec.names,
        bool(succeeds[-1] if robot_of(task).judged_at_end else succeeds.any()),
        torch.cat([torch.zeros(1, dtype=torch.int64), steps.cumsum(0)]),
        torch.stack([one_picture(row[keys.IMAGE]).flatten(0, -3) for row in states]),
        *(over(states, key) for key in (keys.STAGE_INDEX, keys.STAGE_ERROR, keys.POTENTIAL)),
        *(over(decisions, key).flatten() for key in (keys.REWARD, "sparse_reward")),
    )
