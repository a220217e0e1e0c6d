"""Poses of one CPU scene, read directly.

ManiSkill reads a pose through lists, copies and checks that serve batches (30 microseconds); a step reads a dozen, in the task's own success test and
observation as well as in our signals. The subclasses here read the same numbers from the one simulated body.
"""

from typing import Any

import numpy as np
import torch
from mani_skill.utils.structs import Actor, Link, Pose


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


def read_directly(scene: Any) -> None:
    """Let every actor and link of ``scene`` (one scene on CPU physics) read its pose directly, in place."""
    for actor in scene.actors.values():
        if type(actor) is Actor:
            actor.__class__ = OneActor
    for articulation in scene.articulations.values():
        for link in articulation.links:
            if type(link) is Link:
                link.__class__ = OneLink
