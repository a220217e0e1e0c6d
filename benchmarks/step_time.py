"""A control step of one CPU scene: our controller and grasp test on scalars against ManiSkill's own on tensors, the same actions and the same trajectory.

    python benchmarks/step_time.py

A demonstrator's episodes from the state, replayed either way in turn in one process; processor time of the steps, resets left out. What is measured with
them is a whole decision of ``ManiSkillEnv``: physics, success, signals and observation are the same on both sides.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jsonargparse
import torch
from rich.progress import track
from rich.table import Table

from stare_lit import keys
from stare_lit.data.demonstrator import run_expert
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.report import command_line, console, hardware, package_versions, write_json
from stare_lit.experts.make import make_demonstrator

TASKS = ("StackCube-v1", "LiftPegUpright-v1", "PutCarrotOnPlateInScene-v1", "PutEggplantInBasketScene-v1")


def step_time(tasks: Sequence[str] = TASKS, num_seeds: int = 3, pairs: int = 5, out: Path = Path(__file__).parent / "results" / "step_time.json") -> None:
    """Measure milliseconds a step.

    Args:
        tasks: ManiSkill3 tasks.
        num_seeds: episodes a measurement, the first so many seeds of the train range.
        pairs: measurements of either side, in turn.
        out: JSON file.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    table = Table("task", "ManiSkill's, ms", "ours, ms", "ratio", title="a control step", title_justify="left")
    for task in track(tasks, "tasks"):
        results[task] = found = _compare(task, split_seeds("train", num_seeds), pairs)
        table.add_row(task, f"{found['maniskill']:.2f}", f"{found['ours']:.2f}", "{:.2f} [{:.2f}, {:.2f}]".format(found["ratio"], *found["ratio_range"]))
        config = {"num_seeds": num_seeds, "pairs": pairs, "observation": "state"}
        write_json(out, {"command": command_line(), "config": config, "hardware": hardware(), "versions": package_versions(), "results": results})
    console().print(table)
    console().print(f"written to {out}")


def _compare(task: str, seeds: list[int], pairs: int) -> dict[str, Any]:
    """Medians over the pairs, in milliseconds a step, and of their ratio, with its range."""
    env, expert = make_demonstrator(task, observation="state", terminate_on_success=False)
    data, table = run_expert(env, expert, seeds)
    episodes = data[keys.ACTION].split(table["length"].tolist())
    measured = [[_replay(env, seeds, episodes, ours) for ours in (False, True)] for _ in range(pairs)]
    env.close()
    ends = [end for pair in measured for _, end in pair]
    assert all(torch.equal(end, ends[0]) for end in ends), f"{task}: the two sides ended in different states"
    theirs, own = ([pair[side][0] for pair in measured] for side in (0, 1))
    ratios = [a / b for a, b in zip(theirs, own, strict=True)]
    return {
        "maniskill": median(theirs),
        "ours": median(own),
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "steps": len(data),
    }


def _replay(env: Any, seeds: list[int], episodes: Sequence[torch.Tensor], ours: bool) -> tuple[float, torch.Tensor]:
    """Milliseconds a step, and the simulator's last state."""
    seconds = 0.0
    for seed, actions in zip(seeds, episodes, strict=True):
        env.reset(seed=seed)
        if not ours:
            env._stepper = None
            del env.simulator.agent.is_grasping  # the agent's own again
        started = time.process_time()
        for action in actions:
            env.decide(action)
        seconds += time.process_time() - started
    return 1000 * seconds / sum(map(len, episodes)), env.simulator.get_state()


if __name__ == "__main__":
    jsonargparse.auto_cli(step_time)
