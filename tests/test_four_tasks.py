"""Every ManiSkill3 task goes through the three phases with real cameras and physics, each for a few updates."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUARD = '--trainer.callbacks=[{"class_path": "stare_lit.callbacks.NonFiniteGuard"}]'
PARTS = {"PushCube-v1": None, "PullCube-v1": "pull_cube", "StackCube-v1": "stack_cube", "LiftPegUpright-v1": "lift_peg_upright"}


def fit(folder: Path, name: str, *arguments: str) -> list[float]:
    """One `stare fit` in ``folder``; the losses that it logged."""
    line = [sys.executable, "-m", "stare_lit", "fit", *arguments, "--run_dir", name, "--trainer.log_every_n_steps=1"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for path in (folder / name).rglob("metrics.csv") for row in csv.DictReader(path.open())]
    return [float(row["train/loss"]) for row in rows if row.get("train/loss")]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("task", list(PARTS))
def test_three_phases_run(task, tmp_path, vulkan):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    part = [f"--config=configs/task/{PARTS[task]}.yaml"] if PARTS[task] else []
    settings = '{"num_episodes": 4, "num_envs": 4, "at_start": false, "video_episodes": 0}'
    evaluation = f'{{"class_path": "stare_lit.callbacks.RolloutEvaluation", "init_args": {settings}}}'
    demos = ["--data.num_episodes=40", "--trainer.max_steps=240", f"--trainer.callbacks=[{evaluation}]"]
    losses = fit(tmp_path, "sft", "--config=configs/sft.yaml", *part, *demos)
    assert losses[-1] < 0.8 * losses[0]
    later = [f"--data.task={task}", "--model.policy.path=sft/last", GUARD]
    small = ["--data.rollouts.num_states=10", "--data.rollouts.num_samples=6", "--data.rollouts.num_envs=4", "--data.rule.min_gap=0.01"]
    losses = fit(tmp_path, "sta_tpo", "--config=configs/sta_tpo.yaml", *later, *small, "--trainer.max_epochs=1", "--data.validation_fraction=0")
    assert losses and all(map(math.isfinite, losses))
    rounds = ["--data.num_envs=4", "--data.decisions_per_env=13", "--trainer.max_epochs=3"]
    losses = fit(tmp_path, "sta_ppo", "--config=configs/sta_ppo.yaml", *later, *rounds)
    assert len(losses) == 3 and all(map(math.isfinite, losses))
