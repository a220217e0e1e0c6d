"""What a step asks of one CPU scene, read directly: poses, and whether the gripper holds something.

ManiSkill reads a pose through lists, copies and checks that serve batches (30 microseconds); a step reads a dozen, in the task's own success test and
observation as well as in our signals. The subclasses here read the same numbers from the one simulated body. Whether something is grasped (a quarter of
a millisecond) is asked twice a step; most of the time no finger touches anything, and then the answer needs no angles.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from mani_skill.utils.structs import Actor, Link, Pose
from torch import Tensor

from stare_lit.envs.signals import finger_forces

ROUNDING = 0.99  # of a force: what is this little below a threshold may be above it in float32


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


def _is_grasping(agent: Any, object: Actor, min_force: float = 0.5, max_angle: float = 85) -> Tensor:
    """The agent's own answer, bool [1]; without its angles where a finger presses with less than ``min_force`` (N)."""
    if min(finger_forces(agent, object)) < ROUNDING * min_force:
        return torch.tensor([False])
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
