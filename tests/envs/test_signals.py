"""Signals against geometry worked out by hand, and the stages that they make of an expert's episode."""

from math import pi, sqrt

import pytest
import torch
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.signals import INSTRUCTIONS, SIGNALS
from stare_lit.experts.maniskill import ManiSkillExpert
from stare_lit.stages.separator import advance, initial, separate
from stare_lit.stages.tasks import get_spec


@pytest.fixture(scope="module", params=sorted(SIGNALS))
def env(request, simulated):
    env = ManiSkillEnv(simulated(request.param), observation="state")
    yield env
    env.close()


def test_every_task_has_an_instruction(env):
    assert INSTRUCTIONS[env.task] == env.instructions and all(env.instructions)


@pytest.mark.parametrize("seed", [0, 1])
def test_stages_of_an_expert_come_in_order_and_agree_online_and_offline(env, seed):
    spec, expert, td = get_spec(env.task), ManiSkillExpert(env.task), env.reset(seed=seed)
    states = [td[keys.SIGNALS].clone()]
    online = [initial(spec, dict(states[0].items()))]
    while not td["done"]:
        td = step_mdp(env.step(td.set(keys.ACTION_CHUNK, expert.act(env).reshape(1, 7))))
        states.append(td[keys.SIGNALS].clone())
        online.append(advance(spec, online[-1], dict(states[-1].items()), monotone=False))
    online = torch.stack(online)
    offline = separate(spec, dict(torch.stack(states).items()), torch.ones(len(states), dtype=torch.bool))
    assert torch.equal(online, offline)  # nothing was lost on the way
    assert offline[0] == 0 and offline[-1] == spec.num_stages
    assert (offline.diff() >= 0).all()
    assert set(offline.tolist()) == set(range(spec.num_stages + 1))  # every stage takes time


def measured(env):
    """Signals of the pose that the test has just set."""
    return {name: float(value[0]) for name, value in SIGNALS[env.task][0](env.simulator, env._start_height).items()}


@pytest.mark.parametrize("env", ["PushCube-v1", "PullCube-v1"], indirect=True)
def test_distances_of_a_moved_cube(env):
    from mani_skill.utils.structs.pose import Pose

    env.reset(seed=0)
    goal = env.simulator.goal_region.pose.p[0]
    env.simulator.obj.set_pose(Pose.create_from_pq(p=torch.tensor([float(goal[0]) + 0.03, float(goal[1]) - 0.04, 0.02 + 0.01])))
    found, cube, tool = measured(env), env.simulator.obj.pose.p[0], env.simulator.agent.tcp.pose.p[0]
    assert found["object_to_goal_xy"] == pytest.approx(0.05, abs=1e-6)
    assert found["object_height_error"] == pytest.approx(0.01, abs=1e-6)
    offset = -0.025 if env.task == "PushCube-v1" else 0.03
    assert found["tcp_to_pose"] == pytest.approx(float((cube + torch.tensor([offset, 0, 0]) - tool).norm()), abs=1e-6)


@pytest.mark.parametrize("env", ["StackCube-v1"], indirect=True)
def test_a_cube_set_on_the_other(env):
    from mani_skill.utils.structs.pose import Pose

    td = env.reset(seed=0)
    assert td[keys.SIGNALS, "lift"] == 0 and td[keys.SIGNALS, "on_target"] == 0
    base = env.simulator.cubeB.pose.p[0]
    env.simulator.cubeA.set_pose(Pose.create_from_pq(p=base + torch.tensor([0.003, 0.004, 0.04])))
    found = measured(env)
    assert found["on_target"] == 1 and found["released"] == 1 and found["grasped"] == 0
    assert found["lift"] == pytest.approx(0.04, abs=1e-5)
    assert found["object_to_target_xy"] == pytest.approx(0.005, abs=1e-6) and found["object_to_final"] == pytest.approx(0.005, abs=1e-5)
    assert found["object_to_above_target"] == pytest.approx(sqrt(0.005**2 + 0.03**2), abs=1e-5)
    env.simulator.cubeA.set_pose(Pose.create_from_pq(p=base + torch.tensor([0.03, 0.02, 0.04])))
    assert measured(env)["on_target"] == 0  # 0.036 m off, 0.0333 allowed


@pytest.mark.parametrize("env", ["LiftPegUpright-v1"], indirect=True)
def test_a_peg_by_its_true_angle(env):
    from mani_skill.utils.structs.pose import Pose

    td = env.reset(seed=0)
    assert td[keys.SIGNALS, "axis_to_vertical"] == pytest.approx(pi / 2, abs=1e-3) and td[keys.SIGNALS, "upright"] == 0
    half = env.simulator.peg_half_length
    for turn, upright in ((pi / 2, 1), (-pi / 2, 1), (pi / 2 - 0.2, 0)):  # about y: stands on either end, or leans by 0.2 rad
        quaternion = torch.tensor([torch.cos(torch.tensor(turn / 2)), 0, torch.sin(torch.tensor(turn / 2)), 0])
        env.simulator.peg.set_pose(Pose.create_from_pq(p=torch.tensor([0.0, 0.0, half]), q=quaternion))
        found = measured(env)
        assert found["axis_to_vertical"] == pytest.approx(pi / 2 - abs(turn), abs=2e-3)
        assert found["height_error"] == pytest.approx(0, abs=1e-6) and found["upright"] == upright
