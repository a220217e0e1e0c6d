"""make_env and the seeds: refusals before any process starts, and one flat batch of ManiSkill environments in two processes."""

from dataclasses import fields
from inspect import signature

import pytest
import torch
from torchrl.envs.utils import check_env_specs, step_mdp

from stare_lit import keys
from stare_lit.envs import pool
from stare_lit.envs.factory import TOY, default_num_workers, envs_for, make_env, seeded_reset
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.rollout import MASK, run_episodes
from stare_lit.envs.seeds import SEED_RANGES, split_range, split_seeds
from stare_lit.envs.signals import INSTRUCTIONS
from stare_lit.envs.simulator import OF_EPISODES, SimulatorConfig
from stare_lit.envs.transforms import RewardConfig

PUSH = "PushCube-v1"
SETTINGS = {"observation": "state", "chunk_size": 2, "max_episode_steps": 5}


def test_seed_ranges_are_disjoint():
    ranges = sorted(SEED_RANGES.values())
    assert all(first[1] <= second[0] for first, second in zip(ranges, ranges[1:], strict=False))
    assert split_seeds("validation", 2) == [1_000_000, 1_000_001]
    assert list(split_range("validation")[3:5]) == [1_000_003, 1_000_004]
    for split, num, message in (("dev", 1, "split='dev'"), ("test", 0, "num_episodes=0"), ("train", 1_000_001, "num_episodes=1000001")):
        with pytest.raises(ValueError, match=message):
            split_seeds(split, num)


def test_few_episodes_take_few_environments_that_the_workers_share():
    asked = [(5, 8, 2), (5, 8, None), (5, 8, 0), (24, 32, 16), (50, 64, 4), (100, 16, 4), (5, 7, 2)]
    assert [envs_for(*numbers) for numbers in asked] == [6, 5, 5, 32, 52, 16, 6]
    with pytest.raises(ValueError, match="num_envs=7 does not divide over num_workers=2"):
        make_env(PUSH, envs_for(100, 7, 2), num_workers=2, **SETTINGS)  # what was asked for, not another number


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 5, 6, 7, 8, 16, 64])
def test_default_workers_always_share_the_environments_evenly(cores, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    for num_envs in range(1, 65):
        num = default_num_workers(num_envs)
        assert num_envs % num == 0 and num <= cores and (num == 1 or num_envs // num >= 2)
    assert default_num_workers(16) == {1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 4, 8: 8, 16: 8, 64: 8}[cores]


@pytest.mark.parametrize(
    ("task", "num_envs", "settings", "message"),
    [
        ("PushCube-v9", 2, {}, "PushCube-v9"),
        (PUSH, 0, {}, "num_envs=0"),
        (PUSH, 2, {"image_size": 2}, "image_size=2"),
        (PUSH, 2, {"observation": "depth"}, "observation='depth'"),
        (PUSH, 3, {"num_workers": 2}, "num_envs=3 does not divide over num_workers=2"),
        (PUSH, 2, {"num_workers": -1}, "num_workers=-1"),
        (PUSH, 2, {"max_step": 100}, "max_step: no such setting; choose from cameras, chunk_size, .*, max_episode_steps, "),
        (TOY, 2, {"chunk_size": 0}, "chunk_size=0"),
        (TOY, 2, {"max_step": 100}, "max_step: Toy-v0 has no such setting; choose from chunk_size, "),
    ],
)
def test_refusals_come_before_any_process_starts(task, num_envs, settings, message, monkeypatch):
    monkeypatch.setattr(pool.mp, "get_context", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match=message):
        make_env(task, num_envs, **settings)


def test_the_settings_that_are_known_are_those_of_the_environment():
    taken = set(signature(ManiSkillEnv.__init__).parameters) - {"self", "device"}
    assert {field.name for field in fields(SimulatorConfig)} | OF_EPISODES == taken


def test_toy():
    env = make_env(TOY, 3, image_size=16, reward=RewardConfig())
    check_env_specs(env, seed=0)
    td = seeded_reset(env, [5, 6, 7])
    assert td[keys.EPISODE_SEED].tolist() == [5, 6, 7] and len(td[keys.INSTRUCTION]) == 3
    with pytest.raises(ValueError, match="seeds has 2 entries"):
        seeded_reset(env, [1, 2])


@pytest.fixture(scope="module")
def env(vulkan):
    env = make_env(PUSH, 2, num_workers=2, reward=RewardConfig(), **SETTINGS)
    yield env
    env.close()


def sweep(td):
    """Another action for each row and decision."""
    phase = td[keys.EPISODE_SEED].float() + td[keys.STATE].sum(-1)
    return td.set(keys.ACTION_CHUNK, torch.sin(phase[:, None, None] * torch.arange(1, 15).reshape(2, 7)))


def test_specs_text_and_stages(env):
    check_env_specs(env, seed=0)
    td = seeded_reset(env, [1, 2])
    assert list(td[keys.INSTRUCTION]) == list(INSTRUCTIONS[PUSH]) * 2
    assert td[keys.STAGE_INDEX].tolist() == [0, 0] and (td[keys.POTENTIAL] > 0).all()


def test_results_do_not_depend_on_the_number_of_workers(env):
    here = make_env(PUSH, 2, num_workers=0, reward=RewardConfig(), **SETTINGS)
    two, none = (run_episodes(each, sweep, [4, 9, 12]) for each in (env, here))
    here.close()
    assert two[MASK].sum(1).tolist() == [3, 3, 3] and two["next", "num_steps"][0].flatten().tolist() == [2, 2, 1]
    assert (two == none).all()  # to the bit: every key
    single = ManiSkillEnv(PUSH, **SETTINGS)
    td = single.reset(seed=9)
    for t in range(3):
        assert torch.equal(td[keys.STATE], two[1, t][keys.STATE])
        td = step_mdp(single.step(td.set(keys.ACTION_CHUNK, two[1, t][keys.ACTION_CHUNK])))
    single.close()


def test_a_partial_reset_of_real_simulators(env):
    td = step_mdp(env.step(sweep(seeded_reset(env, [1, 2]))))
    again = env.reset(td.clone().set("_reset", torch.tensor([[False], [True]])), seed=[7])
    assert again[keys.EPISODE_SEED].tolist() == [1, 7] and again["num_steps"].flatten().tolist() == [2, 0]
    assert torch.equal(again[0][keys.STATE], td[0][keys.STATE])
    assert torch.equal(again[1][keys.STATE], seeded_reset(env, [7, 7])[0][keys.STATE])
