"""Light meshes against exact ones: the picture, its time, what else could make it faster, and what a policy makes of the difference.

Run alone on the machine: python benchmarks/visuals.py [--parts meshes levers policy] [--task PushCube-v1]

meshes   one scene drawn with exact meshes and at several coarsenesses: triangles, overlap of the robot's silhouette at 128 px over random
         poses, colour difference, milliseconds an image, alternating; and the seconds that a first and a later start spend on the meshes
levers   the same light image in processes of their own, one and then two side by side, with one setting of the renderer changed
policy   a policy that was trained on light images, on both kinds from the same seeds
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from saving import about

from stare_lit.cli.eval import evaluate_checkpoint
from stare_lit.envs import decimation
from stare_lit.envs.simulator import SimulatorConfig, camera_images, make_simulator
from stare_lit.envs.visuals import lighten
from stare_lit.evaluation.report import console, write_json

RESULTS = Path(__file__).parent / "results"
CAMERA = ("base_camera",)
SIZES = (64, 128)
STRONG = 64  # of 255
LEVERS: dict[str, dict[str, str]] = {
    "Mesa's own settings": {},
    "LP_NUM_THREADS=0": {"LP_NUM_THREADS": "0"},
    "LP_NUM_THREADS=1": {"LP_NUM_THREADS": "1"},
    "LP_NUM_THREADS=2": {"LP_NUM_THREADS": "2"},
    "LP_NATIVE_VECTOR_WIDTH=512": {"LP_NATIVE_VECTOR_WIDTH": "512"},
    "shader pack default": {"BENCH_SHADER": "default"},
    "no floor": {"BENCH_NO_FLOOR": "1"},
    "shadows too": {"BENCH_SHADOW": "1"},
    "positions and ids copied too": {"BENCH_ALL": "1"},
    "a picture of the human camera's too": {"BENCH_HUMAN": "1"},
}


def image_of(simulator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Colours uint8 [H, W, 3] and the numbers of what is seen [H, W]."""
    simulator.scene.update_render()
    sensor = simulator.scene.sensors[CAMERA[0]]
    sensor.capture()
    seen = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=True)
    return seen["rgb"][0].numpy().copy(), seen["segmentation"][0, ..., 0].numpy().copy()


def random_poses(simulator: Any, num: int) -> torch.Tensor:
    """Joint positions [num, J] within 0.5 of the start (rad, m), where the camera looks."""
    start, (low, high) = simulator.agent.robot.get_qpos()[0], simulator.agent.robot.get_qlimits()[0].T
    noise = torch.rand(num, len(start), generator=torch.Generator().manual_seed(0))
    return (start + noise - 0.5).clamp(low, high)


def pictures(simulator: Any, poses: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Colours [P, H, W, 3] and where the robot is, bool [P, H, W]."""
    robot = [int(link.per_scene_id[0]) for link in simulator.agent.robot.get_links()]
    taken = []
    for pose in poses:
        simulator.agent.robot.set_qpos(pose[None])
        taken.append(image_of(simulator))
    colours, ids = (np.stack(part) for part in zip(*taken, strict=True))
    return colours, np.isin(ids, robot)


def num_triangles(simulator: Any) -> int:
    """Of all meshes in the scene."""
    import sapien.render

    bodies = [entity.find_component_by_type(sapien.render.RenderBodyComponent) for entity in simulator.scene.sub_scenes[0].entities]
    shapes = [shape for body in bodies if body is not None for shape in body.render_shapes]
    return sum(len(part.triangles) for shape in shapes if isinstance(shape, sapien.render.RenderShapeTriangleMesh) for part in shape.parts)


def milliseconds(simulator: Any, images: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of ``camera_images``."""
    taken = []
    for _ in range(images):
        started = clock()
        camera_images(simulator, CAMERA)
        taken.append(1000 * (clock() - started))
    return statistics.median(taken)


def measure_meshes(task: str, coarsenesses: list[float], poses: int, rounds: int, images: int) -> dict[str, dict[str, Any]]:
    """One row for the exact meshes and one for each coarseness."""
    rows: dict[str, dict[str, Any]] = {}
    simulators: dict[tuple[str, int], Any] = {}
    exact: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for coarseness in (None, *coarsenesses):
        name = "exact" if coarseness is None else f"{1000 * coarseness:g} mm"
        row = rows.setdefault(name, {"coarseness": coarseness})
        for size in SIZES:
            simulator, _ = make_simulator(SimulatorConfig(task, image_size=size, visuals="exact"))
            simulator.reset(seed=0)
            simulators[name, size] = simulator
            if coarseness is not None:
                started = time.perf_counter()
                lighten(simulator.scene.sub_scenes, coarseness)
                row.setdefault("seconds_of_lighten", []).append(time.perf_counter() - started)
            if size not in exact:
                chosen = random_poses(simulator, poses)
                exact[size] = pictures(simulator, chosen)
            colours, robot = pictures(simulator, chosen)
            difference = np.abs(colours.astype(np.float32) - exact[size][0])
            both, either = (robot & exact[size][1]).sum((1, 2)), (robot | exact[size][1]).sum((1, 2))
            overlap = both[either > 0] / either[either > 0]
            row |= {"triangles": num_triangles(simulator), f"overlap_{size}": float(overlap.mean()), f"least_overlap_{size}": float(overlap.min())}
            row |= {f"difference_{size}": float(difference.mean()), f"strong_share_{size}": float((difference > STRONG).mean())}
    for size in SIZES:
        taken = [{name: milliseconds(simulators[name, size], images) for name in rows} for _ in range(rounds)]  # alternating
        for name, row in rows.items():
            row[f"ms_{size}"] = statistics.median(turn[name] for turn in taken)
            row[f"speedup_{size}"] = statistics.median(turn["exact"] / turn[name] for turn in taken)
    for simulator in simulators.values():
        simulator.close()
    return rows


def measure_start(task: str) -> dict[str, float]:
    """Seconds of ``lighten`` in a new process: nothing on disk, then the meshes of the run before, then a rebuild in the same process."""
    with tempfile.TemporaryDirectory() as folder:
        first, later = (answer(child(task, 64, {"XDG_CACHE_HOME": folder, "BENCH_IMAGES": "1"})) for _ in range(2))
    return {"decimated": first["lighten"], "from disk": later["lighten"], "again": later["again"]}


def child(task: str, size: int, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """A process that takes light images and prints one JSON line."""
    command = [sys.executable, str(Path(__file__).with_name("light_images.py")), task, str(size)]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def answer(process: "subprocess.Popen[str]") -> dict[str, float]:
    """What a child printed last."""
    printed, _ = process.communicate()
    return json.loads(printed.splitlines()[-1])


def measure_levers(task: str, rounds: int, images: int, levers: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Each lever at both sizes, alone and two processes side by side; medians over ``rounds``, which alternate between the levers."""
    rows = []
    for size in SIZES:
        for processes in (1, 2):
            taken: dict[str, list[dict[str, float]]] = {name: [] for name in levers}
            for _ in range(rounds):
                for name, environment in levers.items():
                    running = [child(task, size, environment | {"BENCH_IMAGES": str(images)}) for _ in range(processes)]
                    taken[name] += [answer(process) for process in running]
            for name, values in taken.items():
                medians = {key: statistics.median(value[key] for value in values) for key in ("wall_ms", "cpu_ms", "resident_mb")}
                rows.append({"lever": name, "size": size, "processes": processes, **medians})
    return rows


def measure_policy(policy: str, task: str, episodes: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Success on both kinds of images from the same validation seeds."""
    found = {kind: evaluate_checkpoint(policy, task, episodes, "validation", environment={"visuals": kind, **settings}) for kind in ("light", "exact")}
    gain = found["exact"].gain_over(found["light"])
    return {
        **{kind: {"success_once": result.once.value, **vars(result.once)} for kind, result in found.items()},
        "exact_minus_light": vars(gain),
        "lines": {**{kind: str(result.once) for kind, result in found.items()}, "exact - light": str(gain)},
        "episodes": {kind: result.to_dict() for kind, result in found.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["meshes", "levers", "policy"], default=["meshes", "levers", "policy"])
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--policy", default="policies/push_cube_sft")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--coarseness", type=float, nargs="+", default=[0.004, 0.007, decimation.COARSENESS, 0.014, 0.02, 0.04], help="metres")
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--poses", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--max_episode_steps", type=int, default=None)
    parser.add_argument("--output", default=str(RESULTS / "visuals.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out, path = console(), Path(chosen.output)
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    described = about(chosen)
    if "meshes" in chosen.parts:
        rows, start = measure_meshes(chosen.task, chosen.coarseness, chosen.poses, chosen.rounds, chosen.images), measure_start(chosen.task)
        content["meshes"] = {"rows": rows, "seconds_of_lighten": start, **described}
        table = Table("meshes", "triangles", "overlap 128 (least)", "difference 64, 128", "strong", "ms 64", "ms 128", "speed-up 64, 128", title=chosen.task)
        for name, row in rows.items():
            overlap, ms = f"{row['overlap_128']:.3f} ({row['least_overlap_128']:.3f})", (f"{row['ms_64']:.2f}", f"{row['ms_128']:.2f}")
            difference, ratio = f"{row['difference_64']:.2f}, {row['difference_128']:.2f}", f"{row['speedup_64']:.1f}, {row['speedup_128']:.1f}"
            table.add_row(name, f"{row['triangles']}", overlap, difference, f"{row['strong_share_128']:.2%}", *ms, ratio)
        out.print(table, "seconds of lighten: " + ", ".join(f"{name} {value:.3f}" for name, value in start.items()))
    if "levers" in chosen.parts:
        levers = measure_levers(chosen.task, chosen.rounds, chosen.images, {name: LEVERS[name] for name in chosen.levers})
        content["levers"] = {"rows": levers, **described}
        table = Table("lever", "px", "processes", "ms an image", "CPU ms", "MB resident", title=f"{chosen.task}, light")
        for row in levers:
            table.add_row(
                row["lever"], *(f"{row[key]:g}" for key in ("size", "processes")), *(f"{row[key]:.2f}" for key in ("wall_ms", "cpu_ms", "resident_mb"))
            )
        out.print(table)
    if "policy" in chosen.parts:
        settings = {} if chosen.max_episode_steps is None else {"max_episode_steps": chosen.max_episode_steps}
        content["policy"] = {**measure_policy(chosen.policy, chosen.task, chosen.episodes, settings), **described}
        table = Table("images", "success_once", title=f"{chosen.policy}, {chosen.task}, {chosen.episodes} validation seeds, greedy")
        for name, text in content["policy"].pop("lines").items():
            table.add_row(name, text)
        out.print(table)
    out.print(f"written to {write_json(path, content)}")


if __name__ == "__main__":
    main()
