"""N + M steps in one go equal N, kill -9, resume, M: weights, optimizer, random states, step counters and logged metrics, to the bit, on the CPU.

(What a GPU simulator holds is not restored: rounds begin with a seeded reset instead, and GPU physics is not exact to the bit.)
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from toy_phases import PHASES, arguments, checkpoint, die_at_call, differences, metrics, signal_at_call, stare

STEP = (torch.optim.AdamW, "step")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A folder with the three phases, each run in one go; the phases after the first start from its policy."""
    folder = tmp_path_factory.mktemp("undisturbed")
    here = os.getcwd()
    os.chdir(folder)
    try:
        for phase in PHASES:
            assert stare(arguments(phase)) == 0, Path("log.txt").read_text()[-3000:]
        yield folder
    finally:
        os.chdir(here)


@pytest.fixture
def workplace(undisturbed, tmp_path, monkeypatch) -> Path:
    """A folder with the data and the policy that the phases start from, and no run of theirs."""
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    shutil.copytree(undisturbed / "runs" / "sft", tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    return undisturbed


def same_result(undisturbed: Path, phase: str, run_dir: str) -> None:
    whole = str(undisturbed / "runs" / phase)
    assert not differences(checkpoint(whole), checkpoint(run_dir))
    assert metrics(whole) == metrics(run_dir)
    for name in ("best", "last"):
        a, b = (Path(run, name, "model.safetensors").read_bytes() for run in (whole, run_dir))
        assert a == b


def test_a_job_that_slurm_queues_again_goes_on_with_the_same_command(workplace, tmp_path, monkeypatch):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho $@ >> requeued\nkill -9 $PPID\n")  # as the job ends
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "17", "JOB_NAME": "stare", "PROCID": "0", "LOCALID": "0", "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    plugin = {"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment", "init_args": {"auto_requeue": True}}
    line = arguments("sft", f"--trainer.plugins={json.dumps([plugin])}", run_dir="runs/again")
    assert stare(line, before=signal_at_call(*STEP, 5, signal.SIGUSR1)) == -signal.SIGKILL, Path("log.txt").read_text()[-3000:]
    assert Path("requeued").read_text() == "requeue 17\n"
    assert stare(line, before=die_at_call(*STEP, 9)) == 0, Path("log.txt").read_text()[-3000:]  # 8 of 12 steps are left, anew it would take 12
    assert checkpoint("runs/again")["global_step"] == checkpoint(str(workplace / "runs" / "sft"))["global_step"] == 12


# optimizer step before which the process dies: sft has a checkpoint every 3 of 12, sta_tpo one an epoch of 2, sta_ppo one a round of 6
@pytest.mark.parametrize(("phase", "step"), [("sft", 5), ("sft", 11), ("sta_tpo", 5), ("sta_ppo", 8), ("sta_ppo", 16)])
def test_killed_and_resumed_equals_undisturbed(workplace, phase, step):
    line = arguments(phase, run_dir="runs/again")
    assert stare(line, before=die_at_call(*STEP, step)) == -signal.SIGKILL, Path("log.txt").read_text()[-3000:]
    assert stare([*line, "--ckpt_path", "last"]) == 0, Path("log.txt").read_text()[-3000:]
    same_result(workplace, phase, "runs/again")
