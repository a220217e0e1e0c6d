"""The demonstrators: they solve their tasks within the limit, with and without noise. Rates over 200 seeds: ``benchmarks/demos.py``."""

import pytest
import torch

from stare_lit import keys
from stare_lit.data.demonstrator import run_expert
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.experts.maniskill import CONTROLLERS, ManiSkillExpert


@pytest.fixture(scope="module", params=sorted(CONTROLLERS))
def env(request, simulated):
    env = ManiSkillEnv(simulated(request.param), observation="state")
    yield env
    env.close()


def test_success_within_the_limit(env):
    expert = ManiSkillExpert(env.task)
    data, table = run_expert(env, expert, [20, 21, 22])
    assert table["success"].all() and (table["length"] <= env.max_episode_steps).all()
    assert table["seed"].tolist() == [20, 21, 22]
    assert (data[keys.ACTION].abs() <= torch.tensor(env.action_limit) + 1e-6).all() and data[keys.ACTION].shape == (int(table["length"].sum()), 7)
    again, _ = run_expert(env, expert, [22])  # an episode is a function of its seed
    assert torch.equal(again[keys.ACTION], data[keys.ACTION][-len(again) :])


@pytest.mark.usefixtures("vulkan")
def test_a_motion_without_a_solution_is_shortened():
    """Where the inverse kinematics fails, the arm does not move: seed 308 used to stand still for the whole episode."""
    env = ManiSkillEnv("LiftPegUpright-v1", observation="state")
    _, table = run_expert(env, ManiSkillExpert(env.task), [308])
    env.close()
    assert table["success"].all()


def test_success_with_noise(env):
    _, table = run_expert(env, ManiSkillExpert(env.task), [20, 21, 22], action_noise=0.1)
    assert table["success"].all()


def test_unknown_task():
    with pytest.raises(ValueError, match="task='PickCube-v1' has no demonstrator; choose one of .*StackCube-v1"):
        ManiSkillExpert("PickCube-v1")
