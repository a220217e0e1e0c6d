"""Scripted demonstrators for the Panda tasks, acting in the policy's own action space (``pd_ee_delta_pose``).

Each is a proportional controller towards a waypoint that it reads off the present geometry, so that it recovers from a disturbance: little
is remembered (see ``Memory``). To add one, write a function from the simulator and that memory to an action.
"""

from collections.abc import Callable
from functools import partial
from math import pi
from typing import Any

import torch
from torch import Tensor

from stare_lit.envs.signals import peg_axis
from stare_lit.experts.memory import Memory

POSITION_STEP = 0.1  # m of translation at an action of 1
OPEN, CLOSED = 1.0, -1.0

GAIN = 2.0  # for precise work: the arm covers about a third of the distance that an action asks for

HOVER = 0.10  # m above the table, where the gripper travels
PUSH_HEIGHT = 0.02  # m, tool height while pushing
CLEAR = 0.05  # m between the tool and the cube's centre before it descends beside it
ALIGNED = 0.015  # m
GRASP_SLACK = 0.012  # m of horizontal error with which the fingers still close around the object
PLACE_RISE = 0.04  # m above its place at which a cube is carried
PLACE_SLACK = 0.01  # m between the cubes' centres with which the upper one is let down
FUNNEL = 0.02  # m of horizontal error, beyond what is allowed, over which a descent rises to its full clearance
GRASP_DEPTH = 0.005  # m below which a tool counts as being at the grasp point
SOFT = 0.2  # gripper action that holds the peg with about 5 N, so that it can turn between the fingers
PEG_GRIP = 0.09  # m from the peg's centre to where it is gripped
PEG_LEAD = 0.4  # rad by which the waypoint runs ahead of the peg
SHORTER = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)  # shares of a motion that are tried, see `_reachable`
SETTLE = 3  # decisions that the gripper needs to close


def _towards(simulator: Any, target: Tensor, grip: float, gain: float = 1.0) -> Tensor:
    """Action [7] that moves the tool to ``target`` [3] (m) and turns it by nothing."""
    action = torch.zeros(7)
    delta = (target - simulator.agent.tcp.pose.p[0]) / POSITION_STEP * gain
    action[:3] = delta / delta.abs().max().clamp_min(1.0)  # scaled, not clipped: the path stays straight
    action[6] = grip
    return action


def _clearance(offset: Tensor, allowed: float, full: float) -> Tensor:
    """Height (m) to keep above a point that the tool is ``offset`` [>= 2] (m) away from: 0 within ``allowed``, rising to ``full``.

    Continuous, so that a disturbance near the edge does not send the tool up and down again.
    """
    return full * ((torch.linalg.vector_norm(offset[:2]) - allowed) / FUNNEL).clamp(0.0, 1.0)


def _beside(simulator: Any, offset: float, goal_x: float) -> Tensor:
    """Push (offset < 0) or pull (offset > 0): descend beside the cube, then move it along x until it lies at ``goal_x``."""
    tool, cube = simulator.agent.tcp.pose.p[0], simulator.obj.pose.p[0]
    start = torch.tensor([cube[0] + offset, cube[1], PUSH_HEIGHT])
    low = tool[2] < PUSH_HEIGHT + 0.02
    on_side = (tool[0] - cube[0]) / offset > 0.4  # on the right side of the cube, touching or further away
    aligned = (tool[1] - cube[1]).abs() < ALIGNED
    if low and on_side and aligned:
        contact = simulator.cube_half_size * (1 if offset > 0 else -1)
        return _towards(simulator, torch.tensor([goal_x + contact, float(cube[1]), PUSH_HEIGHT]), CLOSED)
    if torch.linalg.vector_norm((tool - start)[:2]) < ALIGNED or (low and on_side):
        return _towards(simulator, start, CLOSED)
    return _towards(simulator, torch.tensor([start[0], start[1], HOVER]), CLOSED)


def push_cube(simulator: Any, memory: Memory) -> Tensor:
    """Behind the cube, then forward until it lies on the target."""
    return _beside(simulator, -CLEAR, float(simulator.goal_region.pose.p[0, 0]))


def pull_cube(simulator: Any, memory: Memory) -> Tensor:
    """Beyond the cube, then back until it lies on the target."""
    return _beside(simulator, CLEAR, float(simulator.goal_region.pose.p[0, 0]))


def _grasp(simulator: Any, actor: Any, point: Tensor, memory: Memory, grip: float = CLOSED) -> Tensor | None:
    """Action that leads to ``actor`` being grasped at ``point`` [3]; none once it is."""
    tool = simulator.agent.tcp.pose.p[0]
    if memory.closing and bool(simulator.agent.is_grasping(actor)[0]):
        return None
    if memory.closing > 2 * SETTLE:
        memory.closing = 0  # it slipped away: open and try again
    if not memory.closing:
        rise = _clearance(tool - point, GRASP_SLACK, CLEAR)
        if rise > 0 or tool[2] - point[2] > GRASP_DEPTH:
            return _towards(simulator, torch.stack([point[0], point[1], point[2] + rise]), OPEN, gain=GAIN)
    memory.closing += 1
    return _towards(simulator, point, grip, gain=GAIN)


def stack_cube(simulator: Any, memory: Memory) -> Tensor:
    """Grasp cube A, carry it above cube B, lower, release, retreat.

    The tool does not turn to the cube: the open fingers take it as it lies and turn it as they close. One that turned first, and waited for it above the
    cube, had as many successes but was hard to imitate: 50 demonstrations and 1500 updates from the state left 2 of 100 validation seeds, of this one 50.
    """
    cube, base, tool = simulator.cubeA.pose.p[0], simulator.cubeB.pose.p[0], simulator.agent.tcp.pose.p[0]
    side = 2 * float(simulator.cube_half_size[2])
    final = base + torch.tensor([0.0, 0.0, side])
    held = tool - cube  # where in the grip the cube sits
    if torch.linalg.vector_norm((cube - final)[:2]) < 0.02 and (cube[2] - final[2]).abs() < 0.005:
        return _towards(simulator, torch.stack([tool[0], tool[1], final[2] + CLEAR]), OPEN) * torch.tensor([0.0, 0, 0.3, 0, 0, 0, 1])
    action = _grasp(simulator, simulator.cubeA, cube, memory)
    if action is not None:
        return action
    if cube[2] < final[2] + 0.01 and torch.linalg.vector_norm((cube - final)[:2]) > 0.03:
        return _towards(simulator, torch.stack([tool[0], tool[1], final[2] + PLACE_RISE + held[2]]), CLOSED, gain=GAIN)
    above = final + held
    above[2] += _clearance(cube - final, PLACE_SLACK, PLACE_RISE)
    return _towards(simulator, above, CLOSED, gain=GAIN)


def lift_peg_upright(simulator: Any, memory: Memory) -> Tensor:
    """Grip the peg near one end, softly, and lead that end up an arc about the other: the peg turns in the grip.

    Turning the wrist instead would take 42 steps of the 50 (measured: 0.037 rad a step at full action).
    """
    peg, axis = simulator.peg.pose.p[0], peg_axis(simulator)[0]
    if memory.end == 0:
        memory.end = 1 if axis[0] > 0 else -1  # the far end: led up from the near one, the arm gets stuck half-way
    axis = memory.end * axis  # from the resting end to the gripped one
    grip = peg + PEG_GRIP * axis
    action = _grasp(simulator, simulator.peg, grip, memory, SOFT)
    if action is not None:
        return action
    rise = torch.asin(axis[2].clamp(-1.0, 1.0))
    foot = peg - simulator.peg_half_length * axis
    ahead = rise + (GAIN * (pi / 2 - rise)).clamp(max=PEG_LEAD)
    level = axis * torch.tensor([1.0, 1.0, 0.0])
    level = level / torch.linalg.vector_norm(level).clamp_min(1e-6)
    radius = simulator.peg_half_length + PEG_GRIP
    target = foot + radius * torch.cos(ahead) * level
    target[2] = radius * torch.sin(ahead)
    return _towards(simulator, target, SOFT)


def _reachable(simulator: Any, action: Tensor) -> Tensor:
    """``action``, its motion shortened until ManiSkill's inverse kinematics solves it: where it finds no solution the arm does not move at all."""
    arm = simulator.agent.controller.controllers["arm"]
    for share in SHORTER:
        shorter = torch.cat([action[:6] * share, action[6:]])
        pose = arm.compute_target_pose(arm.ee_pose_at_base, arm._preprocess_action(shorter[None, :6]))
        if arm.kinematics.compute_ik(pose, arm.articulation.get_qpos()) is not None:
            return shorter
    return action


def _within_reach(waypoints: Callable[[Any, Memory], Tensor], simulator: Any, memory: Memory) -> Tensor:
    return _reachable(simulator, waypoints(simulator, memory).clamp(-1.0, 1.0))


CONTROLLERS = {
    "PushCube-v1": partial(_within_reach, push_cube),
    "PullCube-v1": partial(_within_reach, pull_cube),
    "StackCube-v1": partial(_within_reach, stack_cube),
    "LiftPegUpright-v1": partial(_within_reach, lift_peg_upright),
}
