"""Every shipped configuration parses with its own command, is short, and asks for nothing to be filled in."""

import re
import shlex
from pathlib import Path

import pytest

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

    def test_is_short_and_says_how_to_run_it(self, path):
        lines = path.read_text().splitlines()
        assert len(lines) <= MAX_LINES
        assert lines[0].startswith("# ")
        assert str(path.relative_to(ROOT)) in command(path)

    def test_nothing_to_fill_in(self, path):
        assert not [word for word in ("???", "TODO", "/path/to", "<your") if word in path.read_text()]
