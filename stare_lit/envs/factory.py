"""``make_env``: any task, any number of environments, always one flat batch; and the seeds that episodes start from."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Compose, EnvBase, TransformedEnv

from stare_lit.envs.perturbations import TOY, Perturbation
from stare_lit.envs.pool import EnvironmentPool
from stare_lit.envs.transforms import InstructionText, InstructionTokens, RewardConfig, stage_transforms
from stare_lit.stages.tasks import get_spec


def _single(task: str, **kwargs: Any) -> EnvBase:
    """One CPU environment, made in the process that steps it (one thread: the simulator gains nothing from more)."""
    torch.set_num_threads(1)
    from stare_lit.envs.maniskill import ManiSkillEnv

    return ManiSkillEnv(task, **kwargs)


def default_num_workers(num_envs: int) -> int:
    """The most processes, up to one for each core that this one may use, that share ``num_envs`` evenly and have at least two each."""
    most = max(1, min(len(os.sched_getaffinity(0)), num_envs // 2))
    return next(num for num in range(most, 0, -1) if num_envs % num == 0)


def envs_for(num_episodes: int, num_envs: int, num_workers: int | None) -> int:
    """Environments for so few episodes: ``num_envs``, or as many as there are episodes, made even for the workers."""
    share = num_workers or 1
    return min(num_envs, -(-num_episodes // share) * share)


def check_renderer(task: str, *, visuals: str = "auto", cameras: Sequence[str] | None = None) -> None:
    """Raises ValueError where meshes or cameras are chosen for a task that has none."""
    if task == TOY and visuals != "auto":
        raise ValueError(f"visuals={visuals!r}: {TOY} is drawn without meshes; leave it out, or choose a ManiSkill task")
    if task == TOY and cameras:
        raise ValueError(f"cameras={list(cameras)}: {TOY} is seen from above alone; leave it out, or choose a ManiSkill task")


def toy_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of ``settings``, of any task, that the toy has. Raises ValueError where they ask for others."""
    renderer = {name: settings[name] for name in ("visuals", "cameras") if name in settings}
    check_renderer(TOY, **renderer)
    own = {name: value for name, value in settings.items() if name not in renderer}
    from stare_lit.envs.toy import ToyEnv

    known = [name for name, parameter in signature(ToyEnv.__init__).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    if unknown := sorted(set(own) - set(known)):
        raise ValueError(f"environment: {', '.join(unknown)}: {TOY} has no such setting; choose from {', '.join(known)}")
    return own


def check_env(task: str, num_envs: int, *, num_workers: int | None = None, **settings: Any) -> None:
    """The checks of ``make_env`` that need no simulator, for a caller that has long work to do before it makes one.

    Raises:
        ValueError: unknown task, or a setting that is unknown or does not fit.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs}: at least 1.")
    if not isinstance(perturbation := settings.get("perturbation", Perturbation()), Perturbation):
        raise ValueError(f"perturbation={perturbation!r}: give a Perturbation; on the command line, stare eval has --perturbation.")
    get_spec(task)
    if task == TOY:
        toy_settings(settings)
        return
    if num_workers is not None and (num_workers < 0 or (num_workers and num_envs % num_workers)):
        raise ValueError(f"num_envs={num_envs} does not divide over num_workers={num_workers}; choose a multiple.")
    from stare_lit.envs.simulator import check_settings

    check_settings(task, **settings)


def make_env(
    task: str,
    num_envs: int,
    *,
    num_workers: int | None = None,
    reward: RewardConfig | None = None,
    tokenize: Callable[[Sequence[str]], Tensor] | None = None,
    device: str | torch.device = "cpu",
    step_timeout: float = 120.0,
    rebuild_on_seed: bool = True,
    **settings: Any,
) -> EnvBase:
    """An environment with batch size ``[num_envs]``, instruction text and stages (see ``stare_lit.keys`` for what it publishes).

    Args:
        task: a ManiSkill3 task of ``stare_lit.envs.signals.SIGNALS``, or ``Toy-v0``.
        num_envs: environments stepped together.
        num_workers: processes for CPU physics; 0 steps all in this process; by default one for each core, as far as they share
            ``num_envs`` evenly. On a CUDA ``device`` and for the toy there is one batched environment in this process.
        reward: what ``reward`` is made of; without it the sparse return with gamma 1 and no shaping.
        tokenize: a policy's tokenizer, texts -> int64 [N, L]: publish ``instruction_tokens`` instead of text (for collectors, which would
            copy text at every step).
        device: where the data lives; a CUDA device runs ``physx_cuda``.
        step_timeout: seconds after which a worker process that gives no answer is an error.
        rebuild_on_seed: see ``EnvironmentPool``; CUDA and the toy never rebuild.
        settings: ``chunk_size``, ``observation``, ``image_size``, ``terminate_on_success``, ``seed_range``, ``max_episode_steps``, ``perturbation``,
            ``cameras``, ``visuals`` (of the toy the last two only as they are by default), as ``ManiSkillEnv`` documents them.

    Raises:
        ValueError: unknown task or a setting that does not fit, before any process starts.
    """
    reward = reward or RewardConfig(mode="sparse", gamma=1.0)
    settings["dense_reward"] = reward.mode == "dense"
    check_env(task, num_envs, num_workers=num_workers, **settings)
    if task == TOY:
        from stare_lit.envs.toy import ToyEnv

        base: EnvBase = ToyEnv(num_envs, device=device, **toy_settings(settings))
    else:
        if torch.device(device).type == "cuda" and num_workers is None:
            from stare_lit.envs.maniskill import ManiSkillEnv

            base = ManiSkillEnv(task, num_envs=num_envs, device=device, **settings)
        else:
            workers = default_num_workers(num_envs) if num_workers is None else num_workers
            base = EnvironmentPool(partial(_single, task, **settings), num_envs, workers, step_timeout=step_timeout, rebuild_on_seed=rebuild_on_seed)
    instruction = InstructionText(base.instructions) if tokenize is None else InstructionTokens(tokenize(list(base.instructions)))
    return TransformedEnv(base, Compose(*stage_transforms(get_spec(task), reward), instruction))


def seeded_reset(env: EnvBase, seeds: Sequence[int] | Tensor, *, exact: bool = True) -> TensorDictBase:
    """Reset every environment of the batch to the episode of its seed.

    Args:
        env: made by ``make_env``, batch size [N].
        seeds: N episode seeds.
        exact: build CPU simulators anew (0.05 to 0.26 s each), so that an episode is a function of its seed to the bit; see ``ManiSkillEnv``.

    Raises:
        ValueError: not one seed for each environment.
    """
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != env.batch_size[0]:
        raise ValueError(f"seeds has {len(seeds)} entries but env has batch size {tuple(env.batch_size)}; give one seed for each environment.")
    return env.reset(seed=seeds, exact=exact)
