"""What a step asks of one CPU scene, read directly: poses, and whether the gripper holds something.

ManiSkill reads a pose through lists, copies and checks that serve batches (30 microseconds); a step reads a dozen, in the task's own success test and
observation as well as in our signals. The subclasses here read the same numbers from the one simulated body. Whether something is grasped (a quarter of
a millisecond) is asked twice a step; here it is answered from one walk through the contacts and on scalars, and left to ManiSkill where it is close.
"""

from functools import partial
from math import acos, degrees
from typing import Any

import numpy as np
import torch
from mani_skill.agents.robots import Panda, WidowX250S
from mani_skill.utils.structs import Actor, Link, Pose
from torch import Tensor

from stare_lit.envs.signals import finger_forces

CLOSE = 0.01  # share of a threshold (newtons, degrees): a number this near to it may lie on its other side in float32
READ_HERE = (Panda.is_grasping, WidowX250S.is_grasping)  # fingers open along their own y axes, the first to +y


def _read(p: np.ndarray, q: np.ndarray) -> Pose:
    return Pose(raw_pose=torch.from_numpy(np.concatenate([p, q]))[None])


class OneActor(Actor):
    """An actor of a single scene on the CPU."""

    @property
    def pose(self) -> Pose:
        """World pose, batch of one."""
        pose = self._objs[0].pose
        return _read(pose.p, pose.q)

    @pose.setter
    def pose(self, value: Any) -> None:
        Actor.pose.fset(self, value)


class OneLink(Link):
    """A link of a single scene on the CPU."""

    @property
    def pose(self) -> Pose:
        """World pose, batch of one."""
        pose = self._objs[0].entity_pose  # `pose` would be that of the centre of mass
        return _read(pose.p, pose.q)

    @pose.setter
    def pose(self, value: Any) -> None:
        Link.pose.fset(self, value)


def _opening(finger: Any) -> np.ndarray:
    """The y axis [3] of a link, in the world."""
    w, x, y, z = finger._objs[0].entity_pose.q.tolist()
    return np.array([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])


def _is_grasping(agent: Any, object: Actor, min_force: float = 0.5, max_angle: float = 85) -> Tensor:
    """Whether both fingers press on ``object`` with ``min_force`` (N) or more, each within ``max_angle`` (degrees) of where it closes to; bool [1]."""
    pressed = finger_forces(agent, object)
    newtons = [float(np.linalg.norm(force)) for force in pressed]
    if min(newtons) < (1 - CLOSE) * min_force:
        return torch.tensor([False])
    if type(agent).is_grasping in READ_HERE and min(newtons) > (1 + CLOSE) * min_force:
        openings = _opening(agent.finger1_link), -_opening(agent.finger2_link)
        shares = [-float(opening @ force) / size for opening, force, size in zip(openings, pressed, newtons, strict=True)]
        angles = [degrees(acos(min(max(share, -1.0), 1.0))) for share in shares]
        if all(abs(angle - max_angle) > CLOSE * max_angle for angle in angles):
            return torch.tensor([max(angles) < max_angle])
    return type(agent).is_grasping(agent, object, min_force, max_angle)


def read_directly(simulator: Any) -> None:
    """Let every actor and link of ``simulator`` (one scene on CPU physics) read its pose directly, and its agent its grasp, in place."""
    scene, agent = simulator.scene, simulator.agent
    for actor in scene.actors.values():
        if type(actor) is Actor:
            actor.__class__ = OneActor
    for articulation in scene.articulations.values():
        for link in articulation.links:
            if type(link) is Link:
                link.__class__ = OneLink
    agent.is_grasping = partial(_is_grasping, agent)
