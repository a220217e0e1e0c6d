"""The Bridge tasks of SimplerEnv, as ManiSkill holds them, made fit for training: layouts that never repeat, states, cameras of any size.

SimplerEnv evaluates each task in 24 or 64 fixed layouts. A policy trained in these could know them by heart; so a seed draws a layout around a
random one of them that is at least ``MIN_DISTANCE`` or ``MIN_TURN`` away from all, as drawn and as it comes to rest, and only an ``episode_id``
gives an official one.
"""

from functools import cache
from math import pi
from typing import Any

import mani_skill.envs  # noqa: F401  registers the tasks
import numpy as np
import sapien
import torch
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import StackGreenCubeOnYellowCubeBakedTexInScene
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env import BaseBridgeEnv
from mani_skill.utils.geometry.rotation_conversions import quaternion_multiply, quaternion_to_matrix
from mani_skill.utils.registration import REGISTERED_ENVS, register_env
from torch import Tensor

from stare_lit.envs.robots import WIDOWX

MIN_DISTANCE = 0.01
"""Metres between an object's place and that in an official layout, from which on the layouts differ."""
MIN_TURN = pi / 18
"""Radians about the vertical that do as well. A roll does not: an eggplant that rolled about its long axis looks the same."""
MAX_TURN = pi / 4
"""Radians by which a thing is turned at most from an official orientation (they lie up to a quarter turn apart)."""
MIN_GAP = 0.075
"""Metres between the centres of object and target; on the table at least half their longer sides, so that they do not touch at the start."""
SPREAD = {"flat_table": (0.03, 0.03), "sink": (0.02, 0.0)}
"""Metres along x and y by which the object and the target are moved at most, on the table and in the sink (whose basket stays)."""

MAX_SLIP = {"flat_table": 0.03, "sink": 0.15}
"""Metres that a thing may be from its drawn place when it has come to rest. In the sink one of fifty is put into a wall, which throws it out."""

OUT_OF_THE_WAY = 5.0
"""Metres above the ground at which the robot waits while things are set down."""

WIDTH, HEIGHT = 640, 480
"""Pixels of the official camera."""
INTRINSIC = np.array([[623.588, 0.0, 319.501], [0.0, 623.588, 239.545], [0.0, 0.0, 1.0]])
"""Its intrinsic matrix."""


class RolesExchanged(BaseBridgeEnv):
    """Object and target in each other's place."""

    def __init__(self, obj_names: list[str], **settings: Any) -> None:
        super().__init__(obj_names=obj_names[::-1], **settings)


@register_env("StackYellowCubeOnGreenCubeBakedTexInScene-v1", max_episode_steps=60, asset_download_ids=["bridge_v2_real2sim"])
class StackYellowCubeOnGreenCubeBakedTexInScene(StackGreenCubeOnYellowCubeBakedTexInScene, RolesExchanged):
    """The other stack of the same scenes (ours): only the instruction tells a policy which of the two is wanted."""


def turn_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle (rad) [*B] about the vertical between the x axes of things at unit quaternions ``a`` and ``b`` [*B, 4]: their long side, where they have one."""
    headings = [torch.atan2(axis[..., 1], axis[..., 0]) for axis in (quaternion_to_matrix(thing)[..., :, 0] for thing in (a, b))]
    return (torch.remainder(headings[0] - headings[1] + pi, 2 * pi) - pi).abs()


def turned(orientation: Tensor, generator: torch.Generator) -> Tensor:
    """``orientation`` [4], turned about the vertical by up to ``MAX_TURN``."""
    half = MAX_TURN * (2 * torch.rand((), generator=generator) - 1) / 2
    return quaternion_multiply(torch.stack([half.cos(), half * 0, half * 0, half.sin()]), orientation)


def is_none_of(places: Tensor, orientations: Tensor, place: Tensor, orientation: Tensor) -> bool:
    """Whether the layout ``place`` [2, 3], ``orientation`` [2, 4] differs from each of ``places`` [L, 2, 3], ``orientations`` [L, 2, 4].

    It does where object or target lies ``MIN_DISTANCE`` away in the plane, or the object is turned by ``MIN_TURN``.
    """
    moved = (places - place)[..., :2].norm(dim=-1).amax(-1) >= MIN_DISTANCE
    return bool((moved | (turn_between(orientations[:, 0], orientation[0]) >= MIN_TURN)).all())


def draw_layout(
    places: Tensor, turns: Tensor, generator: torch.Generator, *, spread: tuple[float, float], min_gap: float, num_turned: int = 1
) -> tuple[Tensor, Tensor]:
    """A layout that is no official one.

    Args:
        places: [P, 2, 3], metres: places of the object and of its target in the official layouts.
        turns: [Q, 2, 4]: their orientations; each of them is combined with each of the places.
        spread: see ``SPREAD``.
        min_gap: metres between the two centres.
        num_turned: 1 turns the object alone, 2 its target too.

    Returns:
        Place [2, 3] and orientation [2, 4] of the object and of its target.
    """
    official = places.repeat_interleave(len(turns), 0), turns.repeat(len(places), 1, 1)
    while True:
        i, j = (int(torch.randint(len(options), (), generator=generator)) for options in (places, turns))
        place, orientation = places[i].clone(), turns[j].clone()
        place[:, :2] += (2 * torch.rand(2, 2, generator=generator) - 1) * torch.tensor(spread)[:, None]
        for thing in range(num_turned):
            orientation[thing] = turned(orientation[thing], generator)
        if is_none_of(*official, place, orientation) and (place[0] - place[1])[:2].norm() >= min_gap:
            return place, orientation


class LayoutsAtRest:
    """Mixed into a Bridge task of ManiSkill: things settle before the robot is there, and backgrounds are its own."""

    SUPPORTED_OBS_MODES = ("rgb+segmentation", "state", "none")

    def __init__(self, **settings: Any) -> None:
        # ManiSkill keeps both on the class: of two tasks in one process the second would get the first one's background
        self._rgb_overlay_images: dict[str, Any] = {}
        self._objects_to_remove_from_greenscreen: list[Any] = []
        if settings["obs_mode"] == "state":
            self.rgb_overlay_mode = "none"  # there is no camera whose picture could get a background
        super().__init__(**settings)

    def _initialize_episode(self: Any, env_idx: Tensor, options: dict[str, Any]) -> None:
        """Things settle before ManiSkill puts the robot in its place: where the last episode left its arm, it would push them aside."""
        self.agent.robot.set_pose(sapien.Pose([0.0, 0.0, OUT_OF_THE_WAY]))
        super()._initialize_episode(env_idx, options)  # type: ignore[misc]

    def layout(self: Any) -> tuple[Tensor, Tensor]:
        """Place [2, 3] and orientation [2, 4] of object and target."""
        things = [self.objs[name].pose for name in self.obj_names]
        return torch.cat([thing.p for thing in things]), torch.cat([thing.q for thing in things])


@cache
def official_at_rest(kind: type) -> tuple[Tensor, Tensor]:
    """Places [L, 2, 3] and orientations [L, 2, 4] at which the official layouts of a Bridge task come to rest: in a sink not where they are put.

    Found once a process (1 s; 5 s for the sink), in one simulator of its own: of the 64 eggplants three then lie up to 6 mm from where they do in one
    that is built anew for each (24 s).
    """
    simulator = type(kind.__name__, (LayoutsAtRest, kind), {})(obs_mode="state", num_envs=1, sim_backend="physx_cpu", render_backend="none")
    found = []
    for number in range(len(simulator.xyz_configs) * len(simulator.quat_configs)):
        simulator.reset(seed=0, options={"episode_id": torch.tensor([number])})
        found.append(simulator.layout())
    simulator.close()
    places, orientations = zip(*found, strict=True)
    return torch.stack(places), torch.stack(orientations)


class SeededLayouts(LayoutsAtRest):
    """Mixed into a Bridge task of ManiSkill: a seed draws a layout that is no official one."""

    @property
    def layout_rules(self: Any) -> dict[str, Any]:
        """Of ``draw_layout``. Of two cubes both are turned: else the turned one would tell a policy which to grasp."""
        sides = [self.episode_model_bbox_sizes[name][:2].max() / 2 for name in self.obj_names]
        gap = max(MIN_GAP, float(sum(sides))) if self.scene_setting == "flat_table" else MIN_GAP
        stack = isinstance(self, StackGreenCubeOnYellowCubeBakedTexInScene)
        return {"spread": SPREAD[self.scene_setting], "min_gap": gap, "num_turned": 1 + stack}

    def _initialize_episode(self: Any, env_idx: Tensor, options: dict[str, Any]) -> None:
        if "episode_id" in options:
            super()._initialize_episode(env_idx, options)
            return
        official = self.xyz_configs, self.quat_configs
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))  # ManiSkill has seeded the global one
        rules, fits = self.layout_rules, False
        while not fits:
            place, orientation = draw_layout(*official, generator, **rules)
            self.xyz_configs, self.quat_configs = place[None], orientation[None]
            for thing in self.objs.values():  # of a layout that was thrown out
                thing.set_linear_velocity(torch.zeros(1, 3))
                thing.set_angular_velocity(torch.zeros(1, 3))
            try:
                super()._initialize_episode(env_idx, options | {"episode_id": torch.zeros(1, dtype=torch.int64)})
            finally:
                self.xyz_configs, self.quat_configs = official
            found = self.layout()
            near = bool(((found[0] - place).norm(dim=-1) <= MAX_SLIP[self.scene_setting]).all())
            fits = near and is_none_of(*official_at_rest(self.official_kind), *found)

    def _get_obs_extra(self: Any, info: dict[str, Any]) -> dict[str, Tensor]:
        """What the `state` variant knows beside the joints: tool, object and target, and the ways between them."""
        if not self.obs_mode_struct.use_state:
            return {}
        tool, source, target = self.agent.robot.links_map[WIDOWX.tool].pose, self.objs[self.source_obj_name].pose, self.objs[self.target_obj_name].pose
        poses = {"tool_pose": tool.raw_pose, "object_pose": source.raw_pose, "target_pose": target.raw_pose}
        return poses | {"tool_to_object": source.p - tool.p, "object_to_target": target.p - source.p}


def make_bridge(task: str, *, image_size: int | None, **settings: Any) -> Any:
    """The unwrapped simulator of a Bridge task.

    Args:
        image_size: pixels of the square image: the whole official picture, squeezed as a policy's preprocessing squeezes it, but drawn at this
            size at once; None: the official picture, 640 x 480.
        settings: of ManiSkill's ``BaseEnv``.
    """
    kind = REGISTERED_ENVS[task].cls
    width, height = (WIDTH, HEIGHT) if image_size is None else (image_size, image_size)
    camera = {WIDOWX.camera: {"width": width, "height": height, "intrinsic": np.diag([width / WIDTH, height / HEIGHT, 1.0]) @ INTRINSIC}}
    return type(kind.__name__, (SeededLayouts, kind), {"official_kind": kind})(sensor_configs=camera, **settings)
