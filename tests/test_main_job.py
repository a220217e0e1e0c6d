"""The main job (`make train`) as it ships, made short: its own policy, callbacks and loggers, and one small round."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_main_job_runs(tmp_path, simulated):
    simulated("PushCube-v1")
    config = yaml.safe_load((ROOT / "configs" / "sta_ppo.yaml").read_text())
    config["data"]["init_args"] |= {"num_envs": 2, "decisions_per_env": 6}
    config["trainer"]["max_epochs"] = 1
    (evaluation,) = (callback for callback in config["trainer"]["callbacks"] if callback["class_path"].endswith("RolloutEvaluation"))
    evaluation["init_args"] |= {"every_n_epochs": 1, "num_episodes": 2, "num_envs": 2}
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "stare_lit", "fit", "--config", str(short), "--run_dir", str(tmp_path / "run")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    ended = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "memory on each device" in ended.stdout + ended.stderr  # MemoryPlan had its say before the start
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
