"""Privileged signals of each ManiSkill3 task: what the stage specs are written in.

One pure function a task, from the simulator to named float32 tensors [N] (N = number of parallel scenes): lengths in metres, angles in
radians, flags 0 or 1. A policy never reads them. To add a task, write one function and name it in ``SIGNALS``.

``contact`` and ``grasped`` are asked of the simulator at each call (live), never read from a task's latched episode statistics.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import pi
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stare_lit.envs import toy_world
from stare_lit.envs.perturbations import TOY
from stare_lit.envs.robots import OFFICIAL_LAYOUTS, WIDOWX

CONTACT_FORCE = 0.1  # N; a finger that presses harder than this touches the object
PUSH_OFFSET = 0.005  # m behind the cube's face, ManiSkill's own push pose
PULL_OFFSET = 0.01  # m beyond the cube's face, ManiSkill's own pull pose
STACK_CLEARANCE = 0.03  # m above the final pose: where transport ends and placing begins
FAR = 1.0  # m; an object that was squeezed through the table falls for ever, and is no further away than this
BRIDGE_CLEARANCE = 0.06  # m above the final pose, over the rim of a basket
STACK_XY_SLACK = 0.005  # m, ManiSkill's own tolerance
STACK_Z_TOLERANCE = 0.005  # m, ManiSkill's own tolerance
UPRIGHT_ANGLE = 0.08  # rad, ManiSkill's own tolerance
UPRIGHT_HEIGHT = 0.005  # m, ManiSkill's own tolerance
START_TO_RIM = 0.1  # m from where PushCube's and PullCube's cube starts to the rim of its disc, ManiSkill's own

TOLD_SUCCESS = "told_success"
"""Signal of a scene under the instruction of another task (configs/language): whether what was told is done. Without it one could only see that a
policy fails at the scene's own goal, as a policy does that freezes at words which it does not know."""

Signals = dict[str, Tensor]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def finger_forces(agent: Any, actor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Force [3] in newtons with which each of the two fingers presses on ``actor``, of one CPU scene; one walk through the contacts for both."""
    from mani_skill.utils.sapien_utils import compute_total_impulse, get_multiple_pairwise_contacts

    fingers = [link._bodies[0].entity for link in (agent.finger1_link, agent.finger2_link)]
    contacts = get_multiple_pairwise_contacts(agent.scene.px.get_contacts(), actor._objs[0], fingers)
    first, second = (compute_total_impulse(contacts[finger]) / agent.scene.px.timestep for finger in fingers)
    return first, second


def _touches(env: Any, actor: Any) -> Tensor:
    """Whether a finger presses on ``actor``."""
    if env.scene.gpu_sim_enabled:
        fingers = (env.agent.finger1_link, env.agent.finger2_link)
        return torch.maximum(*(_norm(env.scene.get_pairwise_contact_forces(link, actor)) for link in fingers)) > CONTACT_FORCE
    return torch.tensor([max(np.linalg.norm(force) for force in finger_forces(env.agent, actor)) > CONTACT_FORCE])


def _along_x(env: Any, offset: float) -> Signals:
    """PushCube and PullCube: a cube moved along x into a disc on the table."""
    cube, goal = env.obj.pose.p, env.goal_region.pose.p
    pose = cube.clone()
    pose[:, 0] += offset
    return {
        "tcp_to_pose": _norm(pose - env.agent.tcp.pose.p),
        "object_to_goal_xy": _norm((cube - goal)[:, :2]),
        "object_height_error": (cube[:, 2] - env.cube_half_size).abs(),
        "contact": _touches(env, env.obj),
    }


def push_cube(env: Any, start_height: Tensor) -> Signals:
    """PushCube-v1. The push pose lies behind the cube, seen from the goal."""
    return _along_x(env, -env.cube_half_size - PUSH_OFFSET)


def pull_cube(env: Any, start_height: Tensor) -> Signals:
    """PullCube-v1. The pull pose lies beyond the cube, seen from the robot."""
    return _along_x(env, env.cube_half_size + PULL_OFFSET)


def stack_cube(env: Any, start_height: Tensor) -> Signals:
    """StackCube-v1: cube A onto cube B."""
    cube, base = env.cubeA.pose.p, env.cubeB.pose.p
    half = env.cube_half_size.to(cube)
    final = base.clone()
    final[:, 2] += 2 * half[2]
    above = final.clone()
    above[:, 2] += STACK_CLEARANCE
    xy = _norm((cube - final)[:, :2])
    grasped = env.agent.is_grasping(env.cubeA)
    on_target = (xy <= torch.linalg.vector_norm(half[:2]) + STACK_XY_SLACK) & ((cube[:, 2] - final[:, 2]).abs() <= STACK_Z_TOLERANCE)
    return {
        "tcp_to_object": _norm(cube - env.agent.tcp.pose.p),
        "contact": _touches(env, env.cubeA),
        "grasped": grasped,
        "lift": cube[:, 2] - start_height,
        "object_to_target_xy": xy,
        "object_to_above_target": _norm(cube - above),
        "object_to_final": _norm(cube - final),
        "on_target": on_target,
        "released": ~grasped,
        "static": env.cubeA.is_static(lin_thresh=1e-2, ang_thresh=0.5),
    }


def peg_axis(env: Any) -> Tensor:
    """Unit vector [N, 3] along the peg, in the world."""
    w, x, y, z = env.peg.pose.q.unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=-1)


def lift_peg_upright(env: Any, start_height: Tensor) -> Signals:
    """LiftPegUpright-v1. ``upright`` is the true geometry: the task's own success reads an Euler angle and errs both ways."""
    peg, axis, tcp = env.peg.pose.p, peg_axis(env), env.agent.tcp.pose.p
    along = ((tcp - peg) * axis).sum(-1, keepdim=True).clamp(-env.peg_half_length, env.peg_half_length)
    angle = torch.acos(axis[:, 2].abs().clamp(max=1.0)).clamp(0.0, pi / 2)
    height_error = (peg[:, 2] - env.peg_half_length).abs()
    return {
        "tcp_to_object": _norm(peg + along * axis - tcp),
        "contact": _touches(env, env.peg),
        "grasped": env.agent.is_grasping(env.peg),
        "lift": peg[:, 2] - start_height,
        "axis_to_vertical": angle,
        "height_error": height_error,
        "upright": (angle < UPRIGHT_ANGLE) & (height_error < UPRIGHT_HEIGHT),
    }


def on_the_target(env: Any) -> Tensor:
    """Where the object's centre [N, 3] of a Bridge task belongs: as high above the target's as half of both bounding boxes."""
    final = env.objs[env.target_obj_name].pose.p.clone()
    final[:, 2] += (env.episode_source_obj_bbox_world[2].abs() + env.episode_target_obj_bbox_world[2].abs()) / 2
    return final


def bridge(env: Any, start_height: Tensor) -> Signals:
    """The Bridge tasks: an object onto (or into) a target. ``grasped`` is live: the tasks' own flags stay set for the rest of the episode."""
    source, target, tool = env.objs[env.source_obj_name], env.objs[env.target_obj_name].pose.p, env.agent.robot.links_map[WIDOWX.tool]
    p, final = target + (source.pose.p - target).clamp(-FAR, FAR), on_the_target(env)
    above = final.clone()
    above[:, 2] += BRIDGE_CLEARANCE
    grasped = env.agent.is_grasping(source)
    return {
        "tcp_to_object": _norm(p - tool.pose.p),
        "contact": _touches(env, source),
        "grasped": grasped,
        "lift": p[:, 2] - start_height,
        "object_to_target_xy": _norm((p - final)[:, :2]),
        "object_to_above_target": _norm(p - above),
        "object_to_final": _norm(p - final),
        "released": ~grasped,
    }


def _object_height(name: str) -> Callable[[Any], Tensor]:
    return lambda env: getattr(env, name).pose.p[:, 2].clone()


# task -> (its signals, the height of its object: read once after a reset, it is the `start_height` of `lift`)
SIGNALS: dict[str, tuple[Callable[[Any, Tensor], Signals], Callable[[Any], Tensor]]] = {
    "PushCube-v1": (push_cube, _object_height("obj")),
    "PullCube-v1": (pull_cube, _object_height("obj")),
    "StackCube-v1": (stack_cube, _object_height("cubeA")),
    "LiftPegUpright-v1": (lift_peg_upright, _object_height("peg")),
    **dict.fromkeys(OFFICIAL_LAYOUTS, (bridge, lambda env: env.objs[env.source_obj_name].pose.p[:, 2].clone())),
}

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    TOY: toy_world.INSTRUCTIONS,
    "PushCube-v1": ("push the blue cube to the red and white target",),
    "PullCube-v1": ("pull the blue cube to the red and white target",),
    "StackCube-v1": ("stack the red cube on the green cube",),
    "LiftPegUpright-v1": ("lift the peg upright",),
    "PutCarrotOnPlateInScene-v1": ("put carrot on plate",),
    "PutSpoonOnTableClothInScene-v1": ("put the spoon on the towel",),
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": ("stack the green block on the yellow block",),
    "StackYellowCubeOnGreenCubeBakedTexInScene-v1": ("stack the yellow block on the green block",),
    "PutEggplantInBasketScene-v1": ("put eggplant into yellow basket",),
}
"""Those of the Bridge tasks are the benchmark's."""


def instructions_of(task: str) -> tuple[str, ...]:
    """The entry of ``INSTRUCTIONS``. Raises ValueError for an unknown task."""
    if task not in INSTRUCTIONS:
        raise ValueError(f"task={task!r} is unknown; choose one of {sorted(INSTRUCTIONS)}")
    return INSTRUCTIONS[task]


def _disc_across(env: Any, ahead: float) -> Any:
    """The scene of PushCube or PullCube with the disc where the other one puts it: as far from the cube's start, on its other side (``ahead`` 1 or -1)."""
    view, place = copy(env), env.goal_region.pose.p.clone()
    place[:, 0] += ahead * 2 * (START_TO_RIM + env.goal_radius)
    view.goal_region = SimpleNamespace(pose=SimpleNamespace(p=place))
    return view


def _roles_exchanged(env: Any) -> Any:
    """The scene of two cubes with object and target in each other's place."""
    view = copy(env)
    view.source_obj_name, view.target_obj_name = env.target_obj_name, env.source_obj_name
    view.episode_source_obj_bbox_world, view.episode_target_obj_bbox_world = env.episode_target_obj_bbox_world, env.episode_source_obj_bbox_world
    view.episode_stats, view.consecutive_grasp = dict(env.episode_stats), env.consecutive_grasp.clone()  # which its success test writes to
    return view


GREEN_ON_YELLOW, YELLOW_ON_GREEN = "StackGreenCubeOnYellowCubeBakedTexInScene-v1", "StackYellowCubeOnGreenCubeBakedTexInScene-v1"
TOLD_VIEWS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "PushCube-v1": ("PullCube-v1", partial(_disc_across, ahead=-1.0)),
    "PullCube-v1": ("PushCube-v1", partial(_disc_across, ahead=1.0)),
    GREEN_ON_YELLOW: (YELLOW_ON_GREEN, _roles_exchanged),
    YELLOW_ON_GREEN: (GREEN_ON_YELLOW, _roles_exchanged),
}
"""task -> the one whose goal its scenes hold too, and its scene as that task reads it. Nothing is moved or drawn otherwise: where the words say pull and
the disc lies ahead of the cube, what is told is the verb, to where the told task would have its disc."""


def signals_of(task: str, instructions: Sequence[str]) -> tuple[Callable[[Any, Tensor], Signals], Callable[[Any], Tensor]]:
    """The entry of ``SIGNALS``; with ``TOLD_SUCCESS`` where ``instructions`` are those of the other task in ``TOLD_VIEWS``, by that task's own test."""
    measure, height = SIGNALS[task]
    told, view = TOLD_VIEWS.get(task, (task, copy))
    if told == task or tuple(instructions) != INSTRUCTIONS[told]:
        return measure, height

    def measure_both(env: Any, start_height: Tensor) -> Signals:
        from mani_skill.utils.registration import REGISTERED_ENVS

        return measure(env, start_height) | {TOLD_SUCCESS: REGISTERED_ENVS[told].cls.evaluate(view(env))["success"]}

    return measure_both, height
