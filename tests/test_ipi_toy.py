"""The whole pipeline from nothing on the toy task, as a user runs it.

The floors are what was measured (benchmarks/results/ipi_toy.json), less a generous margin.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ipi_learns_the_toy_task_and_its_two_instructions(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    line = [sys.executable, "-m", "stare_lit", "ipi", "--config", "configs/toy/ipi.yaml"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "runs/toy/report.json").read_text())
    print(done.stdout[-3000:], report["wall_time_seconds"])
    results = report["results"]
    assert set(results) == {"sft", "sta_tpo", "sta_ppo"}
    assert results["sft"]["success_once"]["value"] > 0.6
    assert results["sta_ppo"]["success_once"]["value"] > 0.85
    assert results["sta_ppo"]["stage_funnel"]["transport"]["value"] > 0.9  # to the pad that the instruction names
    swapped = ["--checkpoint=runs/toy/sta_ppo/best", "--task=Toy-v0", "--perturbation=configs/language/swapped.yaml", "--output=language.json"]
    done = subprocess.run([*line[:3], "eval", *swapped], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    language = json.loads((tmp_path / "language.json").read_text())["results"]
    own = {name: row["success_once"]["value"] for name, row in language.items()}
    assert own["in distribution"] > 0.85 and own["swapped"] < 0.2
    assert language["swapped"]["told_success"]["value"] > 0.85  # told the other pad, it goes there
