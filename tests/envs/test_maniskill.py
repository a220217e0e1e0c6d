"""ManiSkillEnv: one class over all tasks, then what is tricky about episodes, chunks, seeds and resets."""

import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torchrl.envs import ParallelEnv, SerialEnv
from torchrl.envs.utils import check_env_specs, step_mdp

from stare_lit import keys
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.robots import OFFICIAL_LAYOUTS
from stare_lit.envs.signals import SIGNALS
from stare_lit.experts.maniskill import ManiSkillExpert
from stare_lit.stages.tasks import get_spec

PUSH = "PushCube-v1"


@pytest.fixture(scope="module", params=sorted(SIGNALS))
def task(request, simulated):
    return simulated(request.param)


@pytest.fixture(scope="module")
def env(task):
    """State observations, no camera; used by several tests one after the other."""
    env = ManiSkillEnv(task, observation="state")
    yield env
    env.close()


@pytest.fixture(scope="module")
def image_env(task):
    dense = task not in OFFICIAL_LAYOUTS  # the Bridge tasks have none
    env = ManiSkillEnv(task, image_size=32, chunk_size=2, dense_reward=dense, visuals="exact")  # making light meshes takes longer than a few images
    yield env
    env.close()


def step(env, td, actions):
    """One decision of ``actions`` [H, 7]; what was stepped."""
    return env.step(td.set(keys.ACTION_CHUNK, actions.reshape(env.chunk_size, 7)))


def expert_episode(env, seed, max_steps=50):
    """Actions [T, 7] and the stepped TensorDicts of the expert in an environment with chunks of one action."""
    expert, td, actions, steps = ManiSkillExpert(env.task), env.reset(seed=seed), [], []
    while len(steps) < max_steps and not (steps and bool(steps[-1]["next", "done"])):
        actions.append(expert.act(env))
        steps.append(step(env, td, actions[-1]).clone())
        td = step_mdp(steps[-1])
    return torch.stack(actions), steps


def test_materials_of_a_scene_without_cameras_do_not_start_vulkan_anew(simulated):
    """A rebuild of StackCube-v1 makes several; alone, each would start and end SAPIEN's render engine (0.16 s on an Intel Xeon at 2.0 GHz)."""
    from sapien.render import RenderMaterial, RenderSystem

    from stare_lit.envs.simulator import _hold_render_engine

    ManiSkillEnv(simulated("StackCube-v1"), observation="state").close()
    assert _hold_render_engine.cache_info().currsize == 1 and isinstance(_hold_render_engine(), RenderSystem)
    started = time.perf_counter()
    for _ in range(5):
        RenderMaterial()
    assert time.perf_counter() - started < 0.1


IN_THIS_ORDER = """
from stare_lit.envs.maniskill import ManiSkillEnv
blind = ManiSkillEnv("PushCube-v1", observation="state")
seeing = ManiSkillEnv("PushCube-v1")
blind.reset(seed=0)
assert seeing.reset(seed=0)["observation", "image"].float().std() > 1
"""


def test_a_process_without_cameras_may_still_get_one(simulated):
    """SAPIEN's engine stays with the first device it was started on: what is held where there is no camera must be of the device that cameras use."""
    simulated("PushCube-v1")
    done = subprocess.run([sys.executable, "-c", IN_THIS_ORDER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


class TestEveryTask:
    def test_specs_of_states(self, env):
        check_env_specs(env, seed=0)

    def test_specs_of_images(self, image_env):
        check_env_specs(image_env, seed=0)

    def test_layout(self, task, image_env):
        td = image_env.reset(seed=4)
        assert td[keys.IMAGE].shape == (3, 32, 32) and td[keys.IMAGE].dtype == torch.uint8
        assert td[keys.IMAGE].float().std() > 5  # a picture, not a plain colour
        assert td[keys.STATE].dtype == torch.float32 and td[keys.STATE].ndim == 1
        assert int(td[keys.EPISODE_SEED]) == 4
        assert get_spec(task).signals <= set(td[keys.SIGNALS].keys()) == set(image_env.signal_names)
        assert all(value.shape == () and value.dtype == torch.float32 for value in td[keys.SIGNALS].values())
        outcome = step(image_env, td, torch.zeros(2, 7))["next"]
        for name, shape in {keys.REWARD: (1,), keys.NUM_STEPS: (1,), keys.STEP_REWARD: (2,), keys.SUCCESS: (1,)}.items():
            assert outcome[name].shape == shape, name
        if image_env.dense_reward:
            assert outcome[keys.DENSE_REWARD].shape == (2,) and 0 < outcome[keys.DENSE_REWARD].min() and outcome[keys.DENSE_REWARD].max() <= 1
        assert image_env.max_episode_steps == {"PutEggplantInBasketScene-v1": 120}.get(task, 60 if task in OFFICIAL_LAYOUTS else 50)

    def test_seed_gives_the_same_trajectory_in_a_used_and_in_a_new_simulator(self, task, env):
        expert_episode(env, seed=1, max_steps=12)  # leaves contacts behind
        _, used = expert_episode(env, seed=3, max_steps=16)
        new_env = ManiSkillEnv(task, observation="state")
        _, new = expert_episode(new_env, seed=3, max_steps=16)
        new_env.close()
        assert len(used) == len(new)
        for ours, theirs in zip(used, new, strict=True):
            assert (ours == theirs).all()  # to the bit, every key

    def test_a_reset_clears_the_contacts_of_the_episode_before(self, env):
        _, steps = expert_episode(env, seed=2, max_steps=14)
        held = "grasped" in env.signal_names  # a cube that is pushed slides ahead of the fingers, and may be touched by none at a step's end
        assert not held or (steps[-1]["next", "signals", "grasped"] == 1 and steps[-1]["next", "signals", "contact"] == 1)
        signals = env.reset()[keys.SIGNALS]  # a drawn seed: the simulator goes on and still reports the old contacts
        assert signals["contact"] == 0
        assert signals.get("grasped", torch.zeros(())) == 0 and signals.get("released", torch.ones(())) == 1


@pytest.fixture(scope="module")
def push(vulkan):
    """PushCube-v1, one action a decision: the expert's episode of seed 0."""
    env = ManiSkillEnv(PUSH, observation="state", seed_range=(5, 8))
    yield env, *expert_episode(env, seed=0)
    env.close()


def test_success_ends_the_episode_once(push):
    _, actions, steps = push
    assert [float(td["next", "reward"]) for td in steps] == [0.0] * (len(actions) - 1) + [1.0]
    last = steps[-1]["next"]
    assert last["terminated"] and last["done"] and not last["truncated"] and last["success"]


def test_a_decision_stops_where_its_episode_ends(push):
    _, actions, steps = push
    chunk = next(h for h in (4, 3) if len(actions) % h)  # so that success falls inside a chunk
    rest = len(actions) % chunk
    env = ManiSkillEnv(PUSH, observation="state", chunk_size=chunk)
    td, done = env.reset(seed=0), False
    padded = torch.cat([actions, torch.ones(chunk - rest, 7)]).split(chunk)
    for i, part in enumerate(padded):
        assert not done
        out = step(env, td, part)["next"]
        done, td = bool(out["done"]), out.clone()
        if i < len(padded) - 1:
            assert out["num_steps"] == chunk and out["reward"] == 0
    env.close()
    assert done and out["terminated"] and out["num_steps"] == rest
    assert out["step_reward"].tolist() == [float(j == rest - 1) for j in range(chunk)]
    assert torch.equal(out[keys.STATE], steps[-1]["next", "observation", "state"])  # the actions beyond the end were not executed


def test_without_termination_the_reward_is_the_change_of_the_flag(push):
    _, actions, _ = push
    env = ManiSkillEnv(PUSH, observation="state", terminate_on_success=False)
    forward = torch.tensor([1.0, 0, 0, 0, 0, 0, -1])  # out of the target again, on the far side
    td, rewards, success = env.reset(seed=0), [], []
    for t in range(50):
        out = step(env, td, actions[t] if t < len(actions) else forward)["next"]
        rewards.append(float(out["reward"]))
        success.append(float(out["success"]))
        assert not out["terminated"] and bool(out["truncated"]) == (t == 49) == bool(out["done"])
        td = out.clone()
    env.close()
    assert rewards.index(1.0) == len(actions) - 1 and -1.0 in rewards
    assert torch.tensor(rewards).cumsum(0).tolist() == success


@pytest.mark.usefixtures("vulkan")
def test_the_observation_before_a_reset_is_kept():
    env = ManiSkillEnv(PUSH, observation="state", chunk_size=2, max_episode_steps=3, seed_range=(5, 8))
    td = env.reset(seed=11)
    stepped, td = env.step_and_maybe_reset(td.set(keys.ACTION_CHUNK, torch.ones(2, 7)))
    assert stepped["next", "num_steps"] == 2 and not stepped["next", "done"] and td[keys.EPISODE_SEED] == 11
    stepped, root = env.step_and_maybe_reset(td.set(keys.ACTION_CHUNK, torch.ones(2, 7)))
    before = stepped["next"]
    assert before["truncated"] and not before["terminated"]
    assert before["num_steps"] == 1 and before["step_reward"][1] == 0
    assert before[keys.EPISODE_SEED] == 11 and 5 <= root[keys.EPISODE_SEED] < 8
    assert not root["done"] and root["num_steps"] == 0 and (root["step_reward"] == 0).all()
    assert not torch.equal(before[keys.STATE], root[keys.STATE])
    fresh = ManiSkillEnv(PUSH, observation="state", chunk_size=2)
    assert torch.equal(fresh.reset(seed=int(root[keys.EPISODE_SEED]))[keys.STATE], root[keys.STATE])
    env.close()
    fresh.close()


def test_drawn_seeds_lie_in_their_range_and_follow_set_seed(push):
    env = push[0]

    def draw():
        env.set_seed(9)
        return [int(env.reset()[keys.EPISODE_SEED]) for _ in range(6)]

    seeds = draw()
    assert set(seeds) <= {5, 6, 7} and len(set(seeds)) > 1
    assert draw() == seeds


@pytest.mark.usefixtures("vulkan")
@pytest.mark.parametrize("kind", [SerialEnv, pytest.param(ParallelEnv, marks=pytest.mark.slow)])
def test_torchrls_own_batched_environments_take_it(kind):
    env = kind(2, partial(ManiSkillEnv, PUSH, observation="state", chunk_size=2, max_episode_steps=5))
    try:
        td = env.reset()
        td = env.step(td.set(keys.ACTION_CHUNK, torch.zeros(2, 2, 7)))
        root = step_mdp(td).clone()
        again = env.reset(root.clone().set("_reset", torch.tensor([[True], [False]])))
        assert torch.equal(again[1][keys.STATE], root[1][keys.STATE]) and again[1]["num_steps"] == 2
        assert again[0]["num_steps"] == 0 and not torch.equal(again[0][keys.STATE], root[0][keys.STATE])
        assert env.rollout(4, auto_cast_to_device=True)["next", "truncated"].sum() == 2  # 2 + 2 + 1 steps each
    finally:
        env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "PushCub-v1"}, "task='PushCub-v1' is unknown; choose one of .*PushCube-v1"),
        ({"observation": "pixels"}, "observation='pixels'"),
        ({"image_size": 4}, "image_size=4"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: must be at least 1"),
        ({"max_episode_steps": -5}, "max_episode_steps=-5"),
        ({"visuals": "pretty"}, "visuals='pretty'"),
        ({"num_envs": 0}, "num_envs=0"),
        ({"seed_range": (3, 3)}, r"seed_range=\(3, 3\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ManiSkillEnv(**{"task": PUSH, **settings})


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_a_gpu_batch_needs_a_gpu():
    with pytest.raises(ValueError, match="num_envs=2 in one simulator needs CUDA.*make_env"):
        ManiSkillEnv(PUSH, num_envs=2)


@pytest.mark.usefixtures("vulkan")
def test_unknown_camera():
    with pytest.raises(ValueError, match=r"cameras=\['wrist'\]: PushCube-v1 has \['base_camera'\]"):
        ManiSkillEnv(PUSH, cameras=("wrist",))


@pytest.mark.parametrize("message", ["vk::createInstanceUnique: ErrorIncompatibleDriver", 'Failed to find a supported physical device "cpu"'])
def test_no_vulkan_device_names_the_doctor(message, monkeypatch):
    def make(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr("gymnasium.make", make)
    with pytest.raises(RuntimeError, match="no Vulkan device .*stare doctor.*Toy-v0"):
        ManiSkillEnv(PUSH)


def test_missing_assets_are_an_error_with_the_command_and_no_prompt(monkeypatch):
    import mani_skill.envs  # noqa: F401  registers the tasks
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    monkeypatch.setattr(REGISTERED_ENVS[PUSH], "asset_download_ids", ["bridge_v2_real2sim"])
    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda source: False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    with pytest.raises(ValueError, match="mani_skill.utils.download_asset bridge_v2_real2sim"):
        ManiSkillEnv(PUSH, observation="state")


def test_missing_assets_of_the_robot_are_named_too(monkeypatch):
    from mani_skill.utils import assets

    from stare_lit.envs.simulator import missing_assets

    carrot = "PutCarrotOnPlateInScene-v1"
    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda source: source != "widowx250s")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    assert missing_assets(carrot) == ["widowx250s"] and missing_assets(PUSH) == []
    with pytest.raises(ValueError, match="mani_skill.utils.download_asset widowx250s"):
        ManiSkillEnv(carrot, observation="state")


def test_one_seed_for_each_episode(push):
    with pytest.raises(ValueError, match="seed has 2 entries but 1 episodes start"):
        push[0].reset(seed=[1, 2])
