"""Two processes (gloo), with DDP and with sharded weights, give the gradients of one process with the joint batch, in each phase."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("joint_gradient.py")


def update(phase: str, strategy: str, path: Path, num_processes: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients and logged metrics of one update."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")} | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(SCRIPT), phase, strategy, str(path)]
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(path), json.loads(path.with_suffix(".json").read_text())


@pytest.fixture(scope="module", params=["sft", "sta_tpo", "sta_ppo"])
def one(request, tmp_path_factory) -> tuple[str, dict[str, torch.Tensor], dict[str, float]]:
    """A phase, and its update in one process."""
    return request.param, *update(request.param, "auto", tmp_path_factory.mktemp("one") / "one.safetensors", 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_gradients_of_the_joint_batch(one, strategy, tmp_path):
    phase, alone, metrics = one
    together, joint_metrics = update(phase, strategy, tmp_path / "two.safetensors", 2)
    assert alone.keys() == together.keys()
    scale = max(gradient.abs().max() for gradient in alone.values())
    assert scale > 1e-4
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=float(2e-6 * max(1.0, scale)), rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    counted = [name for name in metrics if name in ("rollout/episodes", "rollout/success", "rollout/return")]
    assert counted or phase != "sta_ppo"
    for name in counted:
        assert joint_metrics[name] == pytest.approx(metrics[name], rel=1e-5), name


def test_micro_batches_of_two_processes_average_their_gradients_once(tmp_path, monkeypatch):
    """The same gradients as the whole round in one process: what stays here for a while is not lost."""
    alone, _ = update("sta_ppo", "auto", tmp_path / "one.safetensors", 1)
    monkeypatch.setenv("COUNT_SYNCS", str(tmp_path / "syncs"))
    together, _ = update("sta_ppo_micro", "ddp", tmp_path / "two.safetensors", 2)
    scale = float(max(gradient.abs().max() for gradient in alone.values()))
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=2e-6 * max(1.0, scale), rtol=1e-4)
    assert (tmp_path / "syncs").read_text() == "blocked 2 of 3"
