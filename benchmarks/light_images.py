"""Light images of one task in this process; prints one JSON line. benchmarks/visuals.py starts it, with what it varies in the environment.

python benchmarks/light_images.py PushCube-v1 64
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import mani_skill.envs  # noqa: F401  registers the tasks
import sapien.render
import torch

from stare_lit.envs.simulator import camera_images
from stare_lit.envs.visuals import lighten

CAMERA = ("base_camera",)


def measure(task: str, size: int) -> dict[str, float]:
    """Median wall and CPU milliseconds an image (of all threads), seconds of ``lighten``, megabytes resident."""
    torch.set_num_threads(1)
    shader = {"shader_pack": os.environ["BENCH_SHADER"]} if "BENCH_SHADER" in os.environ else {}
    settings = {"obs_mode": "none", "reward_mode": "none", "control_mode": "pd_ee_delta_pose", "sim_backend": "physx_cpu", "render_backend": "cpu"}
    settings |= {"sensor_configs": {"width": size, "height": size, **shader}, "enable_shadow": "BENCH_SHADOW" in os.environ}
    simulator: Any = gymnasium.make(task, **settings).unwrapped
    seconds = []
    for _ in range(2):
        simulator.reset(seed=0, options={"reconfigure": True})
        started = time.perf_counter()
        lighten(simulator.scene.sub_scenes)
        seconds.append(time.perf_counter() - started)
    if "BENCH_NO_FLOOR" in os.environ:
        for entity in simulator.table_scene.ground._objs:
            entity.remove_component(entity.find_component_by_type(sapien.render.RenderBodyComponent))

    def one() -> None:
        camera_images(simulator, CAMERA)
        if "BENCH_ALL" in os.environ:
            simulator.scene.sensors[CAMERA[0]].get_obs(rgb=False, depth=True, position=True, segmentation=True)
        if "BENCH_HUMAN" in os.environ:
            next(iter(simulator.scene.human_render_cameras.values())).capture()

    one()
    num = int(os.environ.get("BENCH_IMAGES", "300"))
    walls, cpus = [], []
    for _ in range(num):
        wall, cpu = time.perf_counter(), time.process_time()
        one()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return {
        "wall_ms": 1000 * statistics.median(walls),
        "cpu_ms": 1000 * statistics.median(cpus),
        "lighten": seconds[0],
        "again": seconds[1],
        "resident_mb": int(resident.split()[1]) / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
