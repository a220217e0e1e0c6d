"""The scalar controller against ManiSkill's own, side by side: the same joint targets, states and flags to the bit."""

import gymnasium
import mani_skill.envs  # noqa: F401  registers the tasks
import numpy as np
import pytest
import torch

from stare_lit import keys
from stare_lit.envs.direct import OneActor, OneLink
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.robots import PANDA, WIDOWX, robot_of
from stare_lit.envs.signals import SIGNALS
from stare_lit.envs.stepping import EndEffectorStepper


def stock(task, control_mode="pd_ee_delta_pose"):
    return gymnasium.make(
        task, obs_mode="state", control_mode=control_mode, reward_mode="normalized_dense", sim_backend="physx_cpu", render_backend="none"
    ).unwrapped


def actions(num, seed):
    """Small and large ones, some beyond the range and some that the controller has to shorten, holding the gripper for a while; float32 [num, 7]."""
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(-1, 1, (num, 7)) * generator.choice([0.1, 1.0, 1.5], (num, 1))
    drawn[::9, 3:6] = 1.0
    drawn[num // 2 :, 6] = -1.0
    return drawn.astype(np.float32)


@pytest.mark.parametrize("task", [task for task in SIGNALS if robot_of(task) is PANDA])
def test_equals_maniskill_to_the_bit(task, simulated):
    theirs, ours = stock(simulated(task)), ManiSkillEnv(task, observation="state", terminate_on_success=False, dense_reward=True)
    observation, _ = theirs.reset(seed=5, options={"reconfigure": True})
    td = ours.reset(seed=5)
    for action in actions(45, seed=1):
        observation, reward, _, _, info = theirs.step(action)
        td = ours.step(td.set(keys.ACTION_CHUNK, torch.from_numpy(action)[None]))["next"]
        assert torch.equal(theirs.get_state(), ours.simulator.get_state())
        assert torch.equal(td[keys.STATE], observation[0])
        assert td[keys.SUCCESS].item() == info["success"].item()
        assert td[keys.DENSE_REWARD].item() == pytest.approx(reward.item(), abs=1e-6)
        for part in (ours.simulator.agent.tcp, *ours.simulator.scene.actors.values()):
            assert torch.equal(part.pose.raw_pose, type(part).__base__.pose.fget(part).raw_pose)
    assert type(ours.simulator.agent.tcp) is OneLink and {type(actor) for actor in ours.simulator.scene.actors.values()} == {OneActor}
    assert (theirs.agent.tcp.pose.p - torch.tensor([[0.0, 0.0, 0.17]])).norm() > 0.02  # it moved
    theirs.close()
    ours.close()


@pytest.mark.parametrize("task", [task for task in SIGNALS if robot_of(task) is WIDOWX])
def test_a_widowx_is_driven_as_by_maniskill_to_the_bit(task, simulated):
    """Both in our scenes, whose layouts are drawn; actions up to the limit, some turns far beyond it and, at the end, a target that is out of reach."""
    theirs, ours = (ManiSkillEnv(simulated(task), observation="state", terminate_on_success=False) for _ in range(2))
    drawn = torch.from_numpy(actions(24, seed=1)) * torch.tensor(ours.action_limit)
    drawn[5, 3:6] = torch.tensor([0.9, -2.0, 1.4])
    drawn[18:, :6] = torch.tensor([0.3, 0.0, 0.3, 0.0, 0.0, 0.0])
    for env in (theirs, ours):
        env.reset(seed=5)
        assert type(env._stepper) is EndEffectorStepper
    theirs._stepper = None  # ManiSkill's own controller
    arms, held = [env.simulator.agent.controller.controllers["arm"] for env in (theirs, ours)], 0
    for action in drawn:
        (info, _), (own, _) = (env._advance(action[None]) for env in (theirs, ours))
        assert torch.equal(theirs.simulator.get_state(), ours.simulator.get_state())
        assert torch.equal(arms[0]._target_pose.raw_pose, arms[1]._target_pose.raw_pose)
        assert torch.equal(theirs.simulator.get_obs(info), ours.simulator.get_obs(own)) and torch.equal(info["success"], own["success"])
        held += torch.equal(arms[0]._target_qpos, arms[0]._start_qpos)
    assert held > 2
    theirs.close()
    ours.close()


def test_an_unreachable_target_leaves_the_arm_where_it_is(vulkan):
    theirs, ours = stock("PushCube-v1"), stock("PushCube-v1")
    for env in (theirs, ours):
        env.reset(seed=0, options={"reconfigure": True})
    stepper = EndEffectorStepper(ours)
    away, unsolved = np.array([1, 0, 1, 0, 0, 0, 1], np.float32), 0
    for _ in range(20):
        theirs.step(away)
        stepper.step(away)
        unsolved += np.array_equal(stepper._arm_targets(away), ours.agent.robot.qpos[0, :7].numpy())
        assert torch.equal(theirs.get_state(), ours.get_state())
    assert unsolved > 3
    theirs.close()
    ours.close()


def test_other_controllers_are_left_to_maniskill(vulkan):
    for mode in ("pd_joint_delta_pos", "pd_ee_target_delta_pose", "pd_ee_delta_pos", "pd_ee_pose"):
        env = stock("PushCube-v1", mode)
        assert not EndEffectorStepper.fits(env), mode
        env.close()


def test_an_action_that_is_not_finite_is_refused(vulkan):
    env = stock("PushCube-v1")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action=.*must be finite"):
        EndEffectorStepper(env).step(np.full(7, np.nan, np.float32))
    env.close()
