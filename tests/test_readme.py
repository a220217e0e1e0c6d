"""Every command in the README, CONTRIBUTING and docs exists: make targets, `stare` commands, their options and configurations."""

import re
import shlex
import shutil
import subprocess
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import pytest
import yaml

from stare_lit.cli import main as front

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/results.md", "docs/method.md", "docs/earlier.md")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KNOWN = [*front.PHASE_COMMANDS, *front.FUNCTION_COMMANDS]


def commands() -> list[tuple[str, ...]]:
    """Commands of ```bash blocks, and `make ...` / `stare ... --...` written inline."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines() if line.strip()]
        lines += re.findall(r"`((?:make|stare) [^`]+)`", text)
        found += [tuple(shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys(command for command in found if command))


COMMANDS = commands()
STARE = [command for command in COMMANDS if command[0] == "stare"]


@cache
def run(*args: str) -> tuple[int, str]:
    """Exit code and output of `stare <args>` in this process."""
    import contextlib
    import io
    import os
    from unittest import mock

    out, code = io.StringIO(), 0
    with mock.patch.dict(os.environ), mock.patch.object(front, "_close_stdin"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            front.main(list(args))
        except SystemExit as error:
            code = error.code
    return code, out.getvalue()


def test_the_readme_has_the_two_commands():
    assert {("make", "train"), ("make", "test")} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "make"], ids=" ".join)
def test_make_targets_exist(command):
    targets = [word for word in command[1:] if "=" not in word]
    assert set(targets) <= TARGETS


@pytest.mark.parametrize("command", STARE, ids=" ".join)
def test_stare_commands_exist(command):
    name = command[1].rstrip(",")
    assert name in KNOWN
    configs = [command[i + 1] for i, word in enumerate(command) if word == "--config"]
    assert all((ROOT / config).is_file() for config in configs), f"no such file: {configs}"


@pytest.mark.parametrize("command", [c for c in STARE if len(c) > 2 and "..." not in " ".join(c)], ids=" ".join)
def test_stare_options_parse(command, monkeypatch):
    """The command as written, with --print_config at its end: every option and value is checked and nothing is run."""
    monkeypatch.chdir(ROOT)
    arguments = [word for word in command[1:] if word != "--help"]
    code, output = run(*arguments, *(["--help"] if "--help" in command else ["--print_config"]))
    assert code == 0, output
    if "--help" not in command and command[1] in front.FUNCTION_COMMANDS:  # --print_config lets a required argument be left out
        parameters = signature(getattr(import_module(f"stare_lit.cli.{command[1]}"), command[1])).parameters.values()
        config = yaml.safe_load(output)
        assert not [each.name for each in parameters if each.default is each.empty and config.get(each.name) is None], "required arguments are missing"


@pytest.mark.parametrize("name", KNOWN)
def test_every_command_has_help(name):
    module = "lightning" if name in front.PHASE_COMMANDS else name
    assert find_spec(f"stare_lit.cli.{module}"), f"stare {name} is listed, but stare_lit/cli/{module}.py is missing"
    code, output = run(name, "--help")
    assert code == 0
    assert "--config" in output


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"make {target}" in done.stdout for target in TARGETS)


def test_links_inside_the_repository_exist():
    for document in DOCUMENTS:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text())
        assert all(((ROOT / document).parent / link).exists() for link in links), links
