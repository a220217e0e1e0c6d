"""Benchmarks that need a GPU run here on the CPU, at the size of a test: every line but the numbers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def openvla():
    spec = importlib.util.spec_from_file_location("openvla_7b", ROOT / "benchmarks" / "openvla_7b.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_openvla_7b_on_the_cpu(openvla, tmp_path, capsys):
    arguments = ["--shape", "tiny", "--device", "cpu", "--micro_batch_size", "4", "--warmup", "1", "--repeats", "2", "--output", str(tmp_path / "out.json")]
    openvla.main(arguments)
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["phases"]) == {"StA-PPO update", "StA-TPO step"} and set(found["rollouts"]) == {"1", "2"}
    assert all(row["seconds"] > 0 and row["share_of_matmul"] > 0 and row["tokens_per_second"] > 0 for row in found["phases"].values())
    assert {"config", "hardware", "versions", "matmul_flops_per_second"} <= set(found)
    assert "decisions/s" in capsys.readouterr().out
