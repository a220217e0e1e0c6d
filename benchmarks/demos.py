"""How often the scripted demonstrators succeed within the tasks' own step limit, with and without action noise.

    python benchmarks/demos.py

Runs every ManiSkill3 task on the first seeds of the train range (no camera: the demonstrators read poses), prints a table and writes
``benchmarks/results/demos.json``, line by line: called again with the same settings and versions, it goes on where it was stopped.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import jsonargparse
import torch
from rich.progress import track
from rich.table import Table

from stare_lit import keys
from stare_lit.data.demonstrator import DemoSettings, run_expert
from stare_lit.envs.robots import OFFICIAL_LAYOUTS
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.metrics import wilson_rate
from stare_lit.evaluation.report import command_line, console, hardware, package_versions, write_json

TASKS = ("PushCube-v1", "PullCube-v1", "StackCube-v1", "LiftPegUpright-v1", *OFFICIAL_LAYOUTS)
BLOCK = 25  # seeds that one process is handed at a time


def _block(task: str, noise: float, seeds: list[int]) -> tuple[list[bool], list[int], list[bool]]:
    """Success, steps and truly upright (LiftPegUpright-v1 only) of the episodes of ``seeds``, in a worker process."""
    torch.set_num_threads(1)
    settings = DemoSettings(task, action_noise=noise, observation="state")
    env, expert = settings.demonstrator()
    try:
        data, table = run_expert(env, expert, seeds, action_noise=noise, hold=settings.hold)
    finally:
        env.close()
    last = data["next"][table["length"].cumsum(0) - 1]
    upright = last[keys.SIGNALS].get("upright", torch.zeros(0)) > 0.5
    return table["success"].tolist(), table["length"].tolist(), upright.tolist()


def demos(
    tasks: Sequence[str] = TASKS,
    noises: Sequence[float] = (0.0, 0.1, 0.2),
    num_seeds: int = 200,
    num_workers: int = 2,
    out: Path = Path(__file__).parent / "results" / "demos.json",
) -> None:
    """Measure the demonstrators.

    Args:
        tasks: ManiSkill3 tasks.
        noises: standard deviations of the Gaussian noise on the three translations of each executed action, shares of the longest step.
        num_seeds: the first so many seeds of the train range.
        num_workers: processes.
        out: JSON file with the numbers, the failed seeds, versions, hardware and settings.
    """
    run = {
        "config": {"num_seeds": num_seeds, "split": "train", "observation": "state"},
        "hardware": hardware(),
        "versions": package_versions(),
    }
    before = json.loads(out.read_text()) if out.exists() else {}
    results: dict[str, Any] = before["results"] if all(before.get(name) == value for name, value in run.items()) else {}
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as executor:
        for task, noise in product(tasks, noises):
            if f"noise={noise:g}" not in results.get(task, {}):
                results.setdefault(task, {})[f"noise={noise:g}"] = _measure(executor, task, noise, split_seeds("train", num_seeds))
                write_json(out, {"command": command_line(), **run, "results": results})
    table = Table(
        "task", "noise", "success within the limit [95 %]", "steps of a success", "truly upright at the end", title="demonstrators", title_justify="left"
    )
    for task, noise in product(tasks, noises):
        found = results[task][f"noise={noise:g}"]
        rates = [str(wilson_rate(found[name]["successes"], num_seeds)) if name in found else "" for name in ("success", "truly_upright_at_end")]
        table.add_row(task, f"{noise:g}", rates[0], f"{found['steps_of_a_success']:.1f}", rates[1])
    console().print(table)
    console().print(f"written to {out}")


def _measure(executor: ProcessPoolExecutor, task: str, noise: float, seeds: list[int]) -> dict[str, Any]:
    """Success and length of the episodes of ``seeds``, as plain values."""
    start = perf_counter()
    futures = [executor.submit(_block, task, noise, seeds[first : first + BLOCK]) for first in range(0, len(seeds), BLOCK)]
    answers = [future.result() for future in track(futures, f"{task} noise {noise:g}")]
    success, length, upright = (sum((list(answer[i]) for answer in answers), []) for i in range(3))
    rate = wilson_rate(sum(success), len(seeds))
    standing = wilson_rate(sum(upright), len(seeds)) if upright else None
    return {
        "success": {"value": rate.value, **vars(rate)},
        **({"truly_upright_at_end": {"value": standing.value, **vars(standing)}} if standing else {}),
        "steps_of_a_success": sum(n for n, ok in zip(length, success, strict=True) if ok) / max(sum(success), 1),
        "failed_seeds": [seed for seed, ok in zip(seeds, success, strict=True) if not ok],
        "seconds": round(perf_counter() - start, 1),
    }


if __name__ == "__main__":
    jsonargparse.auto_cli(demos)
