"""The three phases on the other tasks: does imitation learn, and do the later phases run?

Run: python benchmarks/four_tasks.py [--tasks PullCube-v1 ...]   (about 8 minutes a task on two cores)

For each task: demonstrations and SFT with configs/task/<task>.yaml, then a few updates of StA-TPO and StA-PPO from its policy. This is no
tuned result: the two later phases are kept short on purpose. Success is greedy, on 100 validation seeds.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from rich.table import Table
from saving import save

from stare_lit.evaluation.report import console

RESULTS = Path(__file__).parent / "results"
PARTS = {"PullCube-v1": "pull_cube", "StackCube-v1": "stack_cube", "LiftPegUpright-v1": "lift_peg_upright"}
GUARD = '{"class_path": "stare_lit.callbacks.NonFiniteGuard"}'
EVALUATION = '{"class_path": "stare_lit.callbacks.RolloutEvaluation", "init_args": {"num_episodes": 100, "num_envs": 16, "at_start": false}}'


def fit(run: Path, *arguments: str, evaluate: bool = False) -> dict:
    """One `stare fit`; the last logged value of every metric, the first loss, and where asked for the success at its end."""
    callbacks = f"{EVALUATION}, {GUARD}" if evaluate else GUARD
    command = ["fit", *arguments, "--run_dir", str(run), f"--trainer.callbacks=[{callbacks}]"]
    subprocess.run([sys.executable, "-m", "stare_lit", *command], check=True)
    rows = [row for path in run.rglob("metrics.csv") for row in csv.DictReader(path.open())]
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    last = {name: float(value) for row in rows for name, value in row.items() if value}
    return {"command": command, "loss_first": losses[0], "loss_last": losses[-1], "updates": int(last["step"]), "metrics": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--root", default="runs/four_tasks")
    arguments = parser.parse_args()
    path = RESULTS / "four_tasks.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    for task in arguments.tasks:
        root = Path(arguments.root) / task
        start = f"--model.policy.path={root}/sft/last"
        results[task] = {
            "sft": fit(root / "sft", "--config=configs/sft.yaml", f"--config=configs/task/{PARTS[task]}.yaml", evaluate=True),
            "sta_tpo": fit(
                root / "sta_tpo", "--config=configs/sta_tpo.yaml", f"--data.task={task}", start, "--data.rollouts.num_states=24",
                "--data.rollouts.num_samples=4", "--trainer.max_epochs=1",
            ),
            "sta_ppo": fit(root / "sta_ppo", "--config=configs/sta_ppo.yaml", f"--data.task={task}", start, "--trainer.max_epochs=3"),
        }  # fmt: skip
        save(path, arguments, {"results": results})
    table = Table("task", "phase", "updates", "loss first -> last", "success_once, 100 validation seeds", title="Greedy; later phases short on purpose")
    for task, phases in results.items():
        for name, result in phases.items():
            success = result["metrics"].get("val/success_once")
            loss = f"{result['loss_first']:.3f} -> {result['loss_last']:.3f}"
            table.add_row(task, name, str(result["updates"]), loss, "" if success is None else f"{success:.0%}")
    console().print(table)


if __name__ == "__main__":
    main()
