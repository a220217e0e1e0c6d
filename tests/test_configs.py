"""Every shipped configuration parses with its own command, is short, and asks for nothing to be filled in."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from stare_lit.cli.ipi import _filled

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MAX_LINES = 80


def command(path: Path) -> list[str]:
    """The `stare` command that the first line of the file says to run; parts (task/, ablations/) name the configuration they go on top of."""
    found = re.search(r"Run: stare ([^;\n]+)", path.read_text().splitlines()[0])
    assert found, f"{path}: the first line must say `Run: stare ...`"
    return shlex.split(found[1])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
class TestConfig:
    def test_parses(self, path, assert_parses):
        assert_parses(command(path))

    def test_its_phases_parse(self, path, assert_parses):
        content = yaml.safe_load(path.read_text())
        for phase in content.get("phases", []):
            values = {"start": "runs/start", "root": "runs/root", "task": content["task"]}
            assert_parses(["fit", "--config", phase["config"], *_filled(phase.get("arguments", []), values, phase["name"])])

    def test_is_short_and_says_how_to_run_it(self, path):
        lines = path.read_text().splitlines()
        assert len(lines) <= MAX_LINES
        assert lines[0].startswith("# ")
        assert str(path.relative_to(ROOT)) in command(path)

    def test_nothing_to_fill_in(self, path):
        assert not [word for word in ("???", "TODO", "/path/to", "<your") if word in path.read_text()]
