"""A short ``stare ipi`` on the toy, killed at 20 random moments with SIGKILL (all its processes at once), ends as the undisturbed one does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from toy_phases import CONFIGS, OVERLAYS, PHASES, metrics

ROOT = CONFIGS.parents[1]
KILLS = 20
# longer than for the tests of one phase, so that moments fall into collections, training, evaluation and saving alike
LONGER = {
    "sft": {"data": {"init_args": {"num_episodes": 150, "folder": "data/demos"}}, "trainer": {"max_steps": 60}},
    "sta_tpo": {"data": {"init_args": {"rollouts": {"num_states": 24}}}},
    "sta_ppo": {"trainer": {"max_epochs": 8}},
}


def job(folder: Path) -> list[str]:
    """Writes the configurations of a job into ``folder`` and returns its command."""
    folder.mkdir()
    phases = []
    for phase in PHASES:
        (folder / f"{phase}.yaml").write_text(yaml.safe_dump(OVERLAYS[phase]))
        (folder / f"{phase}_longer.yaml").write_text(yaml.safe_dump(LONGER[phase]))
        arguments = [f"--config={phase}.yaml", f"--config={phase}_longer.yaml"]
        phases.append({"name": phase, "config": str(CONFIGS / f"{phase}.yaml"), "arguments": arguments, "policy": "last"})
        if phase != "sft":
            arguments.append("--model.policy.path={start}")
    test = {"num_episodes": 20, "num_envs": 20}
    (folder / "ipi.yaml").write_text(yaml.safe_dump({"task": "Toy-v0", "root": "runs/ipi", "phases": phases, "test": test}))
    return [sys.executable, "-m", "stare_lit", "ipi", "--config", "ipi.yaml"]


def start(line: list[str], folder: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(line, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def results(folder: Path) -> dict:
    """What must not depend on kills: every policy's weights, the numbers of the report, the logged metrics."""
    run = folder / "runs" / "ipi"
    report = json.loads((run / "report.json").read_text())
    return {
        "weights": {f"{phase}/{name}": (run / phase / name / "model.safetensors").read_bytes() for phase in PHASES for name in ("best", "last")},
        "report": (report["results"], report["paired_gains"], [step["fingerprint"] for step in report["lineage"]]),
        "metrics": {phase: metrics(str(run / phase)) for phase in PHASES},
    }


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    line, began = job(whole), time.monotonic()
    process = start(line, whole)
    assert process.wait(1800) == 0, (whole / "log.txt").read_text()[-3000:]
    seconds = time.monotonic() - began

    line, moments = job(killed), random.Random(0)
    for _ in range(KILLS):
        process = start(line, killed)
        try:
            code = process.wait(moments.uniform(0.0, seconds / 4))  # starting takes much of it: a kill costs more than it gives, often
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        assert code in (0, -signal.SIGKILL), (killed / "log.txt").read_text()[-3000:]
    assert start(line, killed).wait(1800) == 0, (killed / "log.txt").read_text()[-3000:]
    expected, found = results(whole), results(killed)
    for part in expected:
        assert expected[part] == found[part], part
