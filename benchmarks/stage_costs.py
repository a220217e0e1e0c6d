"""The cost of a stage, as StA-TPO weighs it (the mean error of its decisions) and as pairs are ranked (the sum), of clean and of disturbed executions.

    python benchmarks/stage_costs.py

Demonstrators from the same train seeds with and without noise on the executed translations; whole episodes, stages labelled as for preference pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from rich.progress import track
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

from stare_lit import keys
from stare_lit.data.demonstrator import DemoSettings, run_expert
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.report import command_line, console, hardware, package_versions, write_json
from stare_lit.experts.make import make_demonstrator
from stare_lit.stages.calculator import stage_cost, stage_error
from stare_lit.stages.separator import separate
from stare_lit.stages.tasks import get_spec, known_tasks


def stage_costs(
    tasks: Sequence[str] = tuple(known_tasks()), noise: float = 0.2, num_seeds: int = 20, out: Path = Path(__file__).parent / "results" / "stage_costs.json"
) -> None:
    """Measure the costs of clean and of disturbed demonstrations.

    Args:
        tasks: task names.
        noise: standard deviation of the disturbance, a share of the longest step.
        num_seeds: the first so many seeds of the train range.
        out: JSON file.
    """
    torch.set_num_threads(1)
    seeds, results = split_seeds("train", num_seeds), {}
    table = Table("task", "mean, clean", "mean, disturbed", "sum, clean", "sum, disturbed", title="cost, added up over the stages", title_justify="left")
    for task in track(tasks, "tasks"):
        results[task] = {name: _costs(task, seeds, level) for name, level in (("clean", 0.0), ("disturbed", noise))}
        table.add_row(task, *(f"{sum(results[task][name][kind]):.2f}" for kind in ("mean", "sum") for name in ("clean", "disturbed")))
        config = {"noise": noise, "num_seeds": num_seeds, "split": "train", "observation": "state"}
        write_json(out, {"command": command_line(), "config": config, "hardware": hardware(), "versions": package_versions(), "results": results})
    console().print(table)
    console().print(f"written to {out}")


def _costs(task: str, seeds: list[int], noise: float) -> dict[str, Any]:
    """Mean over the episodes of each stage's cost in both forms, and the share of successes."""
    spec, hold = get_spec(task), DemoSettings(task).hold
    env, expert = make_demonstrator(task, toy_batch=len(seeds), observation="state", terminate_on_success=not hold)
    try:
        data, episodes = run_expert(env, expert, seeds, action_noise=noise, hold=hold)
    finally:
        env.close()
    lengths = episodes["length"]
    signals = {name: pad_sequence(list(values.split(lengths.tolist())), batch_first=True) for name, values in data[keys.SIGNALS].items()}
    index = separate(spec, signals, torch.arange(int(lengths.max())) < lengths[:, None])
    error = stage_error(spec, index, signals)
    costs = {kind: stage_cost(error, index, spec.num_stages, reduction=kind).mean(0).tolist() for kind in ("mean", "sum")}
    return {"stages": list(spec.names), **costs, "success": float(episodes["success"].float().mean())}


if __name__ == "__main__":
    jsonargparse.auto_cli(stage_costs)
