"""The scripted demonstrator of the toy environment."""

import pytest
import torch

from stare_lit import keys
from stare_lit.envs.toy import ToyEnv
from stare_lit.experts.noise import disturbed
from stare_lit.experts.toy import ToyExpert


def success_at_end(noise: float) -> float:
    env, expert = ToyEnv(500, observation="state", terminate_on_success=False), ToyExpert()
    generators = [torch.Generator().manual_seed(seed) for seed in range(500)]
    tensordict = env.reset(seed=range(500))
    for _ in range(env.max_episode_steps):
        action = disturbed(expert.act(env), noise, generators, env.action_limit)
        tensordict = env._step_mdp(env.step(tensordict.set(keys.ACTION_CHUNK, action[:, None])))
    return tensordict["signals", "success"].mean().item()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_solves_the_task(noise: float) -> None:
    assert success_at_end(noise) >= 0.99


def test_recovers_a_dropped_block() -> None:
    env, expert = ToyEnv(50, observation="state", max_episode_steps=60), ToyExpert()
    tensordict = env.reset(seed=range(50))
    solved = torch.zeros(50, dtype=torch.bool)
    for step in range(45):
        action = expert.act(env)
        if step == 8:
            action[:, 6] = 1.0
        tensordict = env._step_mdp(env.step(tensordict.set(keys.ACTION_CHUNK, action[:, None])))
        solved |= tensordict["signals", "success"] > 0
    assert solved.all()


def test_actions_are_in_range() -> None:
    env = ToyEnv(8)
    env.reset(seed=range(8))
    action = ToyExpert().act(env)
    assert action.shape == (8, 7) and action.abs().max() <= 1
