"""Benchmarks at the size of a test: every line but the numbers. Those that need a GPU run on the CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stare_lit.models.vla.presets import tiny

ROOT = Path(__file__).parents[1]


def load(name):
    """The script benchmarks/<name>.py as a module."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)  # processes that the script spawns find it, too
    return importlib.import_module(name)


def test_openvla_7b_on_the_cpu(tmp_path, capsys):
    openvla = load("openvla_7b")
    arguments = ["--shape", "tiny", "--device", "cpu", "--micro_batch_size", "4", "--warmup", "1", "--repeats", "2", "--output", str(tmp_path / "out.json")]
    openvla.main(arguments)
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["phases"]) == {"StA-PPO update", "StA-TPO step"} and set(found["rollouts"]) == {"1", "2"}
    assert all(row["seconds"] > 0 and row["share_of_matmul"] > 0 and row["tokens_per_second"] > 0 for row in found["phases"].values())
    assert {"config", "hardware", "versions", "matmul_flops_per_second"} <= set(found)
    assert "decisions/s" in capsys.readouterr().out


def test_rollout_rate_compares_in_pairs():
    class Side:
        def __init__(self, *rates):
            self.rates = iter(rates)

        def rate(self, seconds):
            return next(self.rates)

    found = load("rollout_rate").compare(Side(1.0, 10.0, 20.0, 10.0), Side(1.0, 40.0, 50.0, 30.0), pairs=3, seconds=1.0)
    assert found["ratio"] == 3.0 and found["ratio_range"] == [2.5, 4.0]
    assert found["stock"] == 10.0 and found["ours"] == 40.0


def test_rollout_rate_runs(tmp_path):
    arguments = ["--workers", "1", "--envs_per_worker", "2", "--image_sizes", "--pairs", "1", "--seconds", "0.5", "--output", str(tmp_path / "out.json")]
    load("rollout_rate").main(arguments)
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["observation"] == "state" and row["stock"] > 0 and row["ours"] > 0


def test_step_time(tmp_path, simulated):
    load("step_time").step_time([simulated("StackCube-v1")], num_seeds=1, pairs=1, out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["results"]["StackCube-v1"]
    assert found["maniskill"] > 0 and found["ours"] > 0 and found["steps"] > 10


def test_compiled(tmp_path):
    tiny(4, image_size=32, hidden_size=32, num_layers=1, channels=(8, 8, 8)).save_pretrained(tmp_path / "policy")
    sizes = ["--num_envs=2", "--minibatch_size=4", "--pairs=1"]
    found = run("compiled", tmp_path, f"--policy={tmp_path / 'policy'}", "--task=Toy-v0", "--backend=eager", *sizes)
    assert set(found["parts"]) == {"decision", "minibatch"} and found["warm_up_seconds"]["compiled"]["minibatches"] > 0


def test_endurance_sees_a_leak_and_no_noise():
    endurance, hours = load("endurance"), [i / 100 for i in range(51)]
    noise = [(-1) ** i for i in range(51)]
    leak = endurance.trend(hours, [1000 + 60 * hour + wobble for hour, wobble in zip(hours, noise, strict=True)])
    level = endurance.trend(hours, [1000 + wobble for wobble in noise])
    assert leak["low"] > 50 and leak["high"] < 70
    assert level["low"] < 0 < level["high"] and level["level"] == pytest.approx(1000, abs=1)


def test_endurance_takes_the_least_memory_of_a_round():
    samples = [(10.0, 7.0), (30.0, 900.0), (40.0, 500.0), (60.0, 510.0), (70.0, 950.0), (100.0, 1.0), (120.0, 0.5)]
    assert load("endurance").least(samples, [20.0, 56.0, 92.0, 125.0]) == ([0.01, 0.02], [500.0, 510.0])


def test_endurance_counts_the_memory_of_children():
    """A process of a few MiB whose child holds a block. Not this process: its share of a library's pages falls when another one loads the library."""
    endurance, block = load("endurance"), 64
    child = f"data = b'x' * ({block} * 2**20); print('ready', flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    parent.stdout.readline()
    assert len(endurance.tree(parent.pid)) == 2
    assert block < endurance.memory(parent.pid) < 2 * block
    parent.communicate(b"\n")


def run(name: str, tmp_path: Path, *line: str) -> dict:
    """What a benchmark writes, in a process of its own."""
    output = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *line, "--output", output], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())
    assert {"config", "hardware", "versions"} <= found.keys()
    return found


def test_decision_overhead(tmp_path):
    line = ["--task=Toy-v0", "--num_envs=2", "--decisions_per_env=30", "--state_dim=4", "--image_size=32", "--shipped=", "--pairs=1"]
    found = run("decision_overhead", tmp_path, *line)["seconds_a_decision"]["preset tiny, chunk 1"]
    assert found["policy"] > 0 and found["bare"] > 0 and found["steps"] == 1
    assert found["overhead"] == pytest.approx(found["policy"] + found["collector"])


def test_sft_speed(tmp_path):
    found = run("sft_speed", tmp_path, "--image_size=32", "--batch_size=8", "--num_episodes=4", "--hidden_size=32", "--num_layers=1", "--steps=2", "--pairs=1")
    assert 0 < found["share"] == pytest.approx(found["samples_per_second"]["trainer"] / found["samples_per_second"]["bare loop"])


def test_tpo_speed(tmp_path):
    small = [
        "--micro_batch_sizes=4",
        "--image_size=32",
        '--size={"hidden_size": 32, "num_layers": 1}',
        '--large={"hidden_size": 64, "num_layers": 1}',
        "--precision=32-true",
    ]
    found = run("tpo_speed", tmp_path, "--pairs=1", "--batch=4", "--states=2", "--decisions=3", *small)
    assert all(found["pairs_per_second"][name][0] > 0 for name in ("two models", "ours", "ours, bounded"))
    assert found["large"]["weight_bytes"] > 0 and found["peak_bytes"]["ours"] > 0


def test_staleness(tmp_path):
    torch.manual_seed(0)
    tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16)).save_pretrained(tmp_path / "policy")
    line = [f"--policy={tmp_path / 'policy'}", "--num_envs=3", "--decisions_per_env=4", "--minibatch_size=8", "--rounds=3", "--seeds=1"]
    found = run("staleness", tmp_path, *line)
    assert [len(found["runs"][staleness][0]["success"]) for staleness in ("0", "1")] == [3, 3] and found["speed_ratios"][0] > 0


def test_stage_costs(tmp_path):
    load("stage_costs").stage_costs(["Toy-v0"], num_seeds=8, out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["results"]["Toy-v0"]
    assert found["clean"]["success"] >= 0.75 and found["clean"] != found["disturbed"]
    for kind in found.values():
        assert len(kind["mean"]) == len(kind["sum"]) == len(kind["stages"]) == 4 and all(0 <= cost <= 1 for cost in kind["mean"])
