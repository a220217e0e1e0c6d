"""benchmarks/visuals.py at the size of a test."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # it starts a dozen simulators
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("vulkan")
def test_every_part_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "visuals", raising=False)
    sizes = ["--poses", "2", "--rounds", "1", "--images", "2", "--coarseness", "0.01", "--levers", "LP_NUM_THREADS=0", "--episodes", "1"]
    importlib.import_module("visuals").main([*sizes, "--max_episode_steps", "2", "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    exact, light = found["meshes"]["rows"]["exact"], found["meshes"]["rows"]["10 mm"]
    assert exact["difference_64"] == 0 and exact["overlap_128"] == 1
    assert light["triangles"] < exact["triangles"] / 10 and light["least_overlap_128"] > 0.95 and light["speedup_64"] > 1
    assert {(row["size"], row["processes"]) for row in found["levers"]["rows"]} == {(64, 1), (64, 2), (128, 1), (128, 2)}
    assert found["policy"]["light"]["trials"] == found["policy"]["exact"]["trials"] == 1
    assert all({"config", "hardware", "versions"} <= set(part) for part in found.values())
    assert "exact - light" in capsys.readouterr().out
