"""Two processes (gloo), with DDP and with sharded weights, give the gradients of one process with the joint batch, in each phase."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("joint_gradient.py")
PHASES = ("sft", "sta_tpo", "sta_ppo")
Updates = dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]


def updates(folder: Path, strategy: str, phases: Sequence[str], num_processes: int) -> Updates:
    """Gradients of one update of each phase, and what was logged and counted; one start of the processes for all, which takes longer than they do."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")} | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(SCRIPT), strategy, str(folder), *phases]
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return {phase: (load_file(folder / f"{phase}.safetensors"), json.loads((folder / f"{phase}.json").read_text())) for phase in phases}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Updates:
    """In one process."""
    return updates(tmp_path_factory.mktemp("alone"), "auto", PHASES, 1)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Updates:
    """In two processes, each with all weights."""
    return updates(tmp_path_factory.mktemp("ddp"), "ddp", [*PHASES, "sta_ppo_micro"], 2)


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory) -> Updates:
    """In two processes, each with a share of the weights."""
    return updates(tmp_path_factory.mktemp("fsdp"), "fsdp", PHASES, 2)


def assert_same_gradients(together: dict[str, torch.Tensor], single: dict[str, torch.Tensor]) -> None:
    assert single.keys() == together.keys()
    scale = float(max(gradient.abs().max() for gradient in single.values()))
    assert scale > 1e-4
    for name, gradient in single.items():
        torch.testing.assert_close(together[name], gradient, atol=2e-6 * max(1.0, scale), rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("phase", PHASES)
def test_two_processes_give_the_gradients_of_the_joint_batch(phase, strategy, alone, request):
    (gradients, found), (single, expected) = request.getfixturevalue(strategy)[phase], alone[phase]
    assert_same_gradients(gradients, single)
    counted = [name for name in expected["metrics"] if name in ("rollout/episodes", "rollout/success", "rollout/return")]
    assert counted or phase != "sta_ppo"
    for name in counted:
        assert found["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-5), name


def test_micro_batches_of_two_processes_average_their_gradients_once(alone, ddp):
    """The same gradients as the whole round in one process: what stays here for a while is not lost."""
    gradients, found = ddp["sta_ppo_micro"]
    assert_same_gradients(gradients, alone["sta_ppo"][0])
    assert (found["blocked"], found["passes"]) == (2, 3)
