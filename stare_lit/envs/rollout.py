"""Whole episodes from given seeds, without auto-reset: what evaluation and offline rollouts are made of."""

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, pad
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.envs.factory import seeded_reset

MASK = "mask"
"""Key of the bool [N, T] mask that ``run_episodes`` writes: True = a real decision, False = padding after the episode's end."""

Act = Callable[[TensorDictBase], TensorDictBase]


def run_episodes(
    env: EnvBase,
    act: Act,
    seeds: Sequence[int],
    *,
    max_decisions: int | None = None,
    keep: Sequence[NestedKey] | None = None,
    progress: Callable[[int], None] | None = None,
    exact: bool = True,
) -> TensorDict:
    """One episode from each seed, as tensors [N, T] with a ``mask``.

    The seeds are worked off in waves of ``env.batch_size[0]`` episodes. Each wave starts from a seeded reset and runs until its last episode
    is over; those that are over before rest (TorchRL's ``_step`` mask) and are never counted.
    No gradient is recorded. Text (``language_instruction``) is left out: ``instruction_id`` says which one it was.

    Args:
        env: batch size [num_envs]; must end its episodes itself (terminated or truncated) unless ``max_decisions`` is given.
        act: reads the TensorDict [num_envs] of the present observation and returns it with ``vla_action/chunk`` (and whatever is to be kept).
        seeds: N episode seeds, in the order of the result's rows.
        max_decisions: cut every episode after so many decisions, done or not.
        keep: keys of the stepped TensorDict to keep (``("next", ...)`` for outcomes; a parent key keeps all below it); absent ones are passed over.
            None keeps everything, which holds every image twice.
        progress: called with the number of episodes that a wave has just finished.
        exact: see ``seeded_reset``.

    Returns:
        TensorDict [N, T], T the decisions of the longest episode, rows in the order of ``seeds``. Padding is zero, ``stage_index`` -1.

    Raises:
        ValueError: no seeds, an environment without a batch dimension, or ``max_decisions`` below 1.
    """
    if len(seeds) == 0:
        raise ValueError("seeds is empty: give at least one episode seed")
    if len(env.batch_size) != 1:
        raise ValueError(f"env has batch size {tuple(env.batch_size)}: run_episodes needs [num_envs]; make it with envs.factory.make_env")
    if max_decisions is not None and max_decisions < 1:
        raise ValueError(f"max_decisions={max_decisions}: at least 1, or None to run each episode to its end")
    num_envs = env.batch_size[0]
    waves = []
    for start in range(0, len(seeds), num_envs):
        wave = list(seeds[start : start + num_envs])
        filled = wave + [wave[-1]] * (num_envs - len(wave))  # a short last wave fills up with copies that are dropped again
        with torch.no_grad():
            episodes = _run_wave(env, act, seeded_reset(env, filled, exact=exact), max_decisions, keep)
        waves.append(_trim(episodes[: len(wave)]))
        if progress is not None:
            progress(len(wave))
    longest = max(wave.shape[1] for wave in waves)
    padded = [wave if wave.shape[1] == longest else pad(wave, [0, 0, 0, longest - wave.shape[1]]) for wave in waves]
    return _blank_padding(torch.cat(padded, 0))


def _run_wave(env: EnvBase, act: Act, tensordict: TensorDictBase, max_decisions: int | None, keep: Sequence[NestedKey] | None) -> TensorDict:
    """[num_envs, T] from one reset on; ``mask`` marks the decisions taken before each episode's end."""
    running = torch.ones(env.batch_size, dtype=torch.bool, device=tensordict.device)
    rows: list[TensorDictBase] = []
    while running.any() and (max_decisions is None or len(rows) < max_decisions):
        tensordict = act(tensordict)
        if env.device is not None and tensordict.device != env.device:
            tensordict = tensordict.to(env.device)
        tensordict = env.step(tensordict.set("_step", running.clone()))
        tensordict.pop("_step", None)
        rows.append(_kept(tensordict, keep).set(MASK, running.clone()))
        running = running & ~tensordict["next", keys.DONE].reshape(running.shape)
        tensordict = step_mdp(
            tensordict, reward_keys=env.reward_keys, done_keys=env.done_keys, action_keys=env.action_keys, exclude_action=True, keep_other=True
        )
    return torch.stack(rows, 1)


def _kept(tensordict: TensorDictBase, keep: Sequence[NestedKey] | None) -> TensorDict:
    """A shallow copy with the keys asked for, tensors only."""
    chosen = tensordict.copy() if keep is None else tensordict.select(*keep, strict=False)
    names = chosen.keys(include_nested=True, leaves_only=True)
    tensors = [name for name in names if isinstance(chosen.get(name), Tensor)]
    # cloned, for environments may write the next step into the same memory (shared buffers)
    return chosen.select(*tensors).clone()


def _trim(episodes: TensorDict) -> TensorDict:
    """Drops the columns in which none of the episodes runs (a dropped copy may have run longer)."""
    return episodes[:, : int(episodes[MASK].sum(1).max())]


def _blank_padding(episodes: TensorDict) -> TensorDict:
    """Zeroes what an environment left behind after an episode's end, and sets stage labels there to -1."""
    padding = ~episodes[MASK]
    if padding.any():
        for name, value in episodes.items(include_nested=True, leaves_only=True):
            stage = (name if isinstance(name, str) else name[-1]) == keys.STAGE_INDEX
            value[padding] = -1 if stage else 0
    return episodes
