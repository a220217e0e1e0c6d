"""Every shipped configuration parses with its own command, is short, and asks for nothing to be filled in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MAX_LINES = 80


def command(path: Path) -> str:
    """The `stare` command that reads this configuration."""
    return "fit" if "trainer" in yaml.safe_load(path.read_text()) else path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
class TestConfig:
    def test_parses(self, path):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "stare_lit", command(path), "--config", str(path), "--print_config"]
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def test_is_short_and_says_how_to_run_it(self, path):
        lines = path.read_text().splitlines()
        assert len(lines) <= MAX_LINES
        assert lines[0].startswith("# ")
        assert f"stare {command(path)} --config {path.relative_to(ROOT)}" in path.read_text()

    def test_nothing_to_fill_in(self, path):
        assert not [word for word in ("???", "TODO", "/path/to", "<your") if word in path.read_text()]
