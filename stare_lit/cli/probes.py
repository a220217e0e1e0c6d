"""What ``stare doctor`` runs in a process of its own, since a broken driver may crash or hang: ``python -m stare_lit.cli.probes <name> [argument]``.

Each probe prints one JSON object on its last line.
"""

import json
import sys
from collections.abc import Callable
from typing import Any


def render() -> dict[str, Any]:
    """Render a red box in front of the white background with SAPIEN alone; ``spread`` is the contrast of the image, in [0, 1]."""
    import numpy as np
    import sapien

    from stare_lit.envs.simulator import render_device

    device = sapien.Device(render_device())
    scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(device)])
    scene.set_ambient_light([1.0, 1.0, 1.0])
    builder = scene.create_actor_builder()
    builder.add_box_visual(half_size=[0.1, 0.1, 0.1], material=[1.0, 0.0, 0.0])
    builder.set_initial_pose(sapien.Pose([0.5, 0.0, 0.0]))
    builder.build_static(name="box")
    camera = scene.add_camera("probe", width=32, height=32, fovy=1.0, near=0.01, far=10.0)
    scene.update_render()
    camera.take_picture()
    colours = np.asarray(camera.get_picture("Color"))[..., :3].reshape(-1, 3)
    return {"device": device.name, "spread": float((colours.max(0) - colours.min(0)).max())}


def camera(task: str) -> dict[str, Any]:
    """The first camera image of ``task`` as the project's own environment gives it."""
    from stare_lit.envs.maniskill import ManiSkillEnv

    env = ManiSkillEnv(task, image_size=64)
    image = env.reset(seed=0)["observation", "image"].float()
    env.close()
    return {"shape": list(image.shape), "std": float(image.std())}


def assets(task: str) -> dict[str, Any]:
    """Asset groups of ``task`` that are not on disk, where they are looked for, and whether ManiSkill knows the task."""
    import mani_skill.envs  # noqa: F401  registers the tasks
    from mani_skill import ASSET_DIR
    from mani_skill.utils.registration import REGISTERED_ENVS

    from stare_lit.envs.simulator import missing_assets

    known = task in REGISTERED_ENVS
    return {"known": known, "missing": missing_assets(task) if known else [], "folder": str(ASSET_DIR)}


if __name__ == "__main__":
    probes: dict[str, Callable[..., dict[str, Any]]] = {"render": render, "camera": camera, "assets": assets}
    print(json.dumps(probes[sys.argv[1]](*sys.argv[2:])))
