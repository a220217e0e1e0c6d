"""Scripted demonstrator for the Bridge tasks (WidowX), acting in metres and radians of the arm's target pose.

A waypoint controller as those of the Panda: it reads the present geometry, remembers little, and tries again where the object slipped.
"""

from dataclasses import dataclass
from functools import partial
from math import pi
from typing import Any

import torch
from mani_skill.utils.geometry.rotation_conversions import quaternion_apply, quaternion_to_matrix
from mani_skill.utils.structs import Pose
from torch import Tensor

from stare_lit.envs.robots import WIDOWX
from stare_lit.envs.signals import on_the_target
from stare_lit.experts.memory import Memory

OPEN, CLOSED = 1.0, -1.0
STEP, TURN = WIDOWX.action_limit[0], WIDOWX.action_limit[5]  # m and rad, longest of one action
HOVER = 0.07  # m above the grip, where the gripper travels and turns
ALIGNED = 0.008  # m of horizontal error with which the open gripper goes down around the object (the fingers leave about 9 mm)
FUNNEL = 0.02  # m beyond that over which it rises to its full height
TURNED = 0.15  # rad of error about the vertical with which it goes down
GRIP_SLACK = 0.008  # m above the grip at which the fingers close, of the pose that the tool is told. To wait for the tool itself, which lags, leaves a policy
# that goes up and down beside the spoon (docs/earlier.md)
LEFT = pi / 4  # rad, greatest angle about the vertical to which the tool turns from its start; the least is half a turn less. About both a small difference of
# the object means the other side, which a policy cannot tell: here they are far from every official layout (tests/envs/test_bridge.py)
SETTLE = 4  # actions that the fingers have to close or to open
READY = 0.02  # m that both fingers stand open before the gripper goes down (0.037 when fully open; on its way down an eggplant pushes one to 0.027)
SHUT = 0.016  # m below which it has closed on nothing (0.015 at its limit)
CLEAR = 0.03  # m from the target's centre, beyond which the object is first lifted, then carried
RETREAT = 0.08  # m above the place, where the open gripper waits for the end


@dataclass(frozen=True)
class Job:
    """What differs between the tasks.

    Attributes:
        turns: the tool turns across the object's long axis before it goes down. A cube is gripped as it lies, and turns between the fingers as they close:
            its four pixels do not show a small policy how it lies, which then turns by a habit, and cannot follow a demonstrator that turns.
        grip: m along the object's long axis x from its centre, where it is gripped. The spoon's hull tapers: about its middle the fingers slide off its
            slanting sides (36 of 120 seeds), towards the handle they hold it (1 of 120).
        waits: the gripper goes down once the tool itself is above the object, not the pose that it is told, which it follows late: an eggplant rolls away
            from a finger that comes down on it.
        carry: m above its final height at which the object travels.
        drop: m above its final height at which it is let go.
        slack: m from the target's centre with which it is let down.
    """

    turns: bool = True
    grip: float = 0.0
    waits: bool = False
    carry: float = 0.07
    drop: float = 0.008
    slack: float = 0.02


STACK = Job(turns=False, drop=0.004, slack=0.01)
JOBS = {
    "PutCarrotOnPlateInScene-v1": Job(),
    "PutSpoonOnTableClothInScene-v1": Job(grip=0.015),
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": STACK,
    "StackYellowCubeOnGreenCubeBakedTexInScene-v1": STACK,
    "PutEggplantInBasketScene-v1": Job(waits=True, carry=0.1, drop=0.03),
}


def _action(arm: Any, point: Tensor, grip: float, turn: float = 0.0) -> Tensor:
    """Action [7] that moves the arm's target towards ``point`` [3] (m, world) and turns it by ``turn`` (rad, about the vertical)."""
    base, goal = arm.root_link.pose, arm.root_link.pose * arm._target_pose
    turned_back = base.q * torch.tensor([1.0, -1.0, -1.0, -1.0])
    way = quaternion_apply(turned_back, point[None] - goal.p)[0]
    action = torch.zeros(7)
    action[:3] = way * (STEP / way.norm().clamp_min(STEP))  # scaled, not clipped: the path stays straight
    action[5] = max(-TURN, min(TURN, turn))
    action[6] = grip
    return action


def turn_to_grip(source: Pose, tool: Pose) -> float:
    """Turn (rad) about the vertical that brings the fingers, which open along the tool's y, across the object's long axis x.

    To which side is the object's alone to say, not the tool's present angle: a push does not change it.
    """
    along, opening = (torch.atan2(axis[1], axis[0]).item() for axis in (quaternion_to_matrix(source.q)[0, :, 0], quaternion_to_matrix(tool.q)[0, :, 1]))
    wanted = (along - LEFT) % pi + LEFT - pi  # of the tool, from its start, where the fingers open along -y of the world
    least = LEFT - 3 / 2 * pi  # no joint's limit is near in the full turn that begins here
    return wanted - ((opening + pi / 2 - least) % (2 * pi) + least)


def pick_and_place(job: Job, simulator: Any, memory: Memory) -> Tensor:
    """Grip the object, lift it, carry it over the target, let it down, let go and stay away."""
    source = simulator.objs[simulator.source_obj_name]
    arm = simulator.agent.controller.controllers["arm"]
    tool, told, pose = simulator.agent.robot.links_map[WIDOWX.tool].pose, arm.root_link.pose * arm._target_pose, source.pose  # the tool lags what it is told
    hand, centre, final = told.p[0], pose.p[0], on_the_target(simulator)[0]
    grasped = bool(simulator.agent.is_grasping(source))
    placed = not grasped and bool(simulator.evaluate()["success"])  # with something in the fingers, asking would count the grasp twice
    if memory.opening or placed:
        memory.opening += 1
        if memory.opening <= SETTLE or placed:
            rise = final[2] + RETREAT if memory.opening > 2 else hand[2]
            return _action(arm, torch.stack([hand[0], hand[1], torch.as_tensor(rise)]), OPEN)
        memory.opening = memory.closing = 0
    fingers = simulator.agent.robot.get_qpos()[0, -2:]
    if not grasped and (memory.closing > SETTLE or bool((fingers < SHUT).all())):
        memory.closing = 0  # it slipped away, or nothing was there: at once, for a policy without memory cannot count how long it waits
    if grasped:  # at once, and however it came about: a policy without memory cannot count actions, and would hold still for ever
        memory.closing = SETTLE  # should it slip now, the gripper opens after one more action
        away, high = (final - centre)[:2].norm(), centre[2] - final[2]
        place = final + tool.p[0] - centre  # of the tool, when the object is where it belongs
        rise = job.drop / 2 + (job.carry - job.drop / 2) * ((away - job.slack) / FUNNEL).clamp(0.0, 1.0)
        if high < job.carry - 0.02 and away > CLEAR:
            return _action(arm, torch.stack([hand[0], hand[1], place[2] + job.carry]), CLOSED)
        if rise > job.drop or high > job.drop:
            return _action(arm, torch.stack([place[0], place[1], place[2] + rise]), CLOSED)
        memory.opening = 1
        return _action(arm, hand, OPEN)
    held = pose.p[0] + job.grip * quaternion_to_matrix(pose.q)[0, :, 0]  # where the fingers close
    if memory.closing:
        memory.closing += 1
        return _action(arm, held, CLOSED)
    turn = turn_to_grip(pose, told) if job.turns else 0.0
    above = tool if job.waits else told
    low = (not job.turns or abs(turn_to_grip(pose, above)) < TURNED) and bool((fingers > READY).all())
    rise = HOVER * (((held - above.p[0])[:2].norm() - ALIGNED) / FUNNEL).clamp(0.0, 1.0) if low else torch.tensor(HOVER)
    if rise > 0 or held[2] - hand[2] < -GRIP_SLACK:
        return _action(arm, torch.stack([held[0], held[1], held[2] + rise]), OPEN, turn)
    memory.closing = 1
    return _action(arm, held, CLOSED)


CONTROLLERS = {task: partial(pick_and_place, job) for task, job in JOBS.items()}
