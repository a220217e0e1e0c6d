"""`stare fit` in two processes: one run folder, one set of checkpoints, each process its own episodes, and a run that goes on."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stare_lit.models.vla.presets import tiny

ROOT = Path(__file__).parents[2]
NUM_ENVS, DECISIONS = 3, 5
SHARDED = "lightning.pytorch.strategies.ModelParallelStrategy"
STRATEGIES = {
    "ddp": ["--trainer.strategy", "ddp"],
    "sharded": ["--trainer.strategy", SHARDED, "--trainer.strategy.data_parallel_size", "2", "--trainer.strategy.tensor_parallel_size", "1"],
}


def fit(folder: Path, *arguments: str) -> list[dict[str, str]]:
    """One call; the rows of metrics that it has written by then, of rounds only."""
    line = [sys.executable, "-m", "stare_lit", "fit", "--config", "configs/toy/sta_ppo.yaml", "--model.policy.path", "policy", *arguments]
    line += ["--data.num_envs", str(NUM_ENVS), "--data.decisions_per_env", str(DECISIONS), "--trainer.devices", "2", "--model.value_warmup_rounds", "0"]
    evaluation = '{"class_path": "stare_lit.callbacks.RolloutEvaluation", "init_args": {"num_episodes": 4, "num_envs": 4, "video_episodes": 0}}'
    checkpoint = '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": true}}'
    line += [f"--trainer.callbacks=[{evaluation}, {checkpoint}]"]
    done = subprocess.run(line, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for path in sorted(folder.rglob("metrics.csv")) for row in csv.DictReader(path.open())]
    return [row for row in rows if row.get("rollout/env_steps")]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("sharded", marks=pytest.mark.slow)])
def test_two_processes_make_one_run(strategy, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tiny(4, image_size=32, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16)).save_pretrained(tmp_path / "policy")
    rounds = fit(tmp_path, "--trainer.max_epochs", "1", *STRATEGIES[strategy])
    assert [folder.name for folder in (tmp_path / "runs" / "sta_ppo").iterdir()] == ["001"]
    assert float(rounds[0]["rollout/env_steps"]) == 2 * NUM_ENVS * DECISIONS * 2  # processes, environments, decisions, steps of a chunk
    more = fit(tmp_path, "--trainer.max_epochs", "2", "--run_dir", "runs/sta_ppo/001", "--ckpt_path", "last", *STRATEGIES[strategy])
    assert [folder.name for folder in (tmp_path / "runs" / "sta_ppo").iterdir()] == ["001"]
    assert load_file(tmp_path / "runs/sta_ppo/001/last/model.safetensors").keys() == load_file(tmp_path / "policy/model.safetensors").keys()
    assert int(more[-1]["epoch"]) == 1 and float(more[-1]["rollout/env_steps"]) == 2 * float(rounds[0]["rollout/env_steps"])
