"""The bookkeeping of a job of several steps: skip, continue, refuse; and the checks before any work."""

import json
import sys

import pytest
from rich.console import Console

from stare_lit.cli import steps
from stare_lit.cli.ipi import Measurement, Phase, _checked, _filled, ipi
from stare_lit.cli.steps import Step, run_step


@pytest.fixture
def commands(monkeypatch):
    """Replaces the ``stare`` process by a small one that exits with the given code; collects the commands."""
    seen, codes = [], []

    class Process(steps.subprocess.Popen):
        def __init__(self, command, **kwargs):
            seen.append(command[3:])
            super().__init__([sys.executable, "-c", f"raise SystemExit({codes.pop(0) if codes else 0})"], **kwargs)

    monkeypatch.setattr(steps.subprocess, "Popen", Process)
    return seen, codes


def make(tmp_path, *extra):
    return Step("sft", ("fit", "--config", "c.yaml", *extra), record=tmp_path / "sft.json", run_dir=tmp_path / "sft")


def test_a_finished_step_is_skipped_and_keeps_its_time(tmp_path, commands):
    seconds = run_step(make(tmp_path), Console(quiet=True))
    assert run_step(make(tmp_path), Console(quiet=True)) == seconds > 0
    assert len(commands[0]) == 1
    with pytest.raises(ValueError, match="begun with other settings"):
        run_step(make(tmp_path, "--seed=2"), Console(quiet=True))


def test_a_failed_step_goes_on_from_its_last_checkpoint_and_its_time_adds_up(tmp_path, commands):
    seen, codes = commands
    codes.append(1)
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_step(make(tmp_path), Console(quiet=True))
    first = json.loads((tmp_path / "sft.json").read_text())
    assert not first["finished"]
    checkpoints = tmp_path / "sft" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("last.ckpt", "epoch=1.ckpt"):
        (checkpoints / name).touch()
    assert run_step(make(tmp_path), Console(quiet=True)) > first["seconds"]
    assert seen[1][-2:] == ["--ckpt_path", str(checkpoints / "last.ckpt")]


def test_a_step_without_a_checkpoint_starts_anew(tmp_path, commands):
    seen, codes = commands
    codes.append(1)
    with pytest.raises(RuntimeError):
        run_step(make(tmp_path), Console(quiet=True))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "config.yaml").touch()
    run_step(make(tmp_path), Console(quiet=True))
    assert "--ckpt_path" not in seen[1]
    assert not (tmp_path / "sft").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, commands):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "notes.txt").touch()
    with pytest.raises(ValueError, match="not begun by this command"):
        run_step(make(tmp_path), Console(quiet=True))
    assert commands[0] == []


def test_wrong_settings_may_be_mended(tmp_path, commands):
    commands[1].append(2)
    with pytest.raises(RuntimeError, match="exit code 2"):
        run_step(make(tmp_path, "--wrong"), Console(quiet=True))
    run_step(make(tmp_path), Console(quiet=True))


def test_an_interrupted_child_interrupts(tmp_path, commands):
    commands[1].append(130)
    with pytest.raises(KeyboardInterrupt):
        run_step(make(tmp_path), Console(quiet=True))


def test_phases_are_checked_before_work(tmp_path):
    config = tmp_path / "sft.yaml"
    config.touch()
    phases = [Phase("sft", str(config)), Phase("sta_ppo", str(config))]
    assert [phase.name for phase in _checked(phases, "sft")] == ["sft"]
    with pytest.raises(ValueError, match="until='tpo'"):
        _checked(phases, "tpo")
    with pytest.raises(ValueError, match="unique"):
        _checked([phases[0], phases[0]], None)
    with pytest.raises(ValueError, match="not a file here"):
        _checked([Phase("sft", "absent.yaml")], None)


def test_placeholders():
    values = {"root": "runs/ipi", "task": "Toy-v0", "start": None}
    assert _filled(["--data.folder={root}/demos", "{a: 1}"], values, "sft") == ["--data.folder=runs/ipi/demos", "{a: 1}"]
    with pytest.raises(ValueError, match="no phase came before"):
        _filled(["--model.policy.path={start}"], values, "sft")


def test_every_phase_is_trained_on_the_task_unless_it_names_its_own(tmp_path, monkeypatch):
    config, seen = tmp_path / "sft.yaml", []
    config.touch()

    class Enough(Exception):
        pass

    def run_step(step, out):
        seen.append(step.command)
        if len(seen) == 3:
            raise Enough
        return 1.0

    monkeypatch.setattr("stare_lit.cli.ipi.run_step", run_step)
    phases = [Phase("sft", str(config), ("--config=configs/task/stack_cube.yaml",)), Phase("two", str(config), ("--data.tasks=[PushCube-v1]",))]
    with pytest.raises(Enough):
        ipi([*phases, Phase("other", str(config), ("--data.task=PullCube-v1",))], task="StackCube-v1", root=str(tmp_path / "root"))
    assert seen[0][-2:] == ("--config=configs/task/stack_cube.yaml", "--data.task=StackCube-v1")  # the last word counts
    assert seen[1][-1] == "--data.tasks=[PushCube-v1]" and seen[2][-1] == "--data.task=PullCube-v1"


@pytest.mark.parametrize(
    ("task", "test", "message"),
    [
        ("PushCub-v1", {}, "'PushCub-v1' has no stages"),
        ("PushCube-v1", {"num_episodes": 0}, "num_episodes=0"),
        ("PushCube-v1", {"temperature": -1.0}, "test.temperature=-1.0"),
        ("PushCube-v1", {"num_workers": 3}, "num_envs=8 does not divide over num_workers=3"),
        ("PushCube-v1", {"environment": {"max_step": 9}}, "max_step: no such setting"),
        ("Toy-v0", {"environment": {"terminate_on_success": True}}, "terminate_on_success=true"),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_phases(task, test, message, tmp_path, monkeypatch):
    monkeypatch.setattr("stare_lit.cli.ipi.run_step", lambda *_: pytest.fail("a phase was run"))
    config = tmp_path / "sft.yaml"
    config.touch()
    with pytest.raises(ValueError, match=message):
        ipi([Phase("sft", str(config))], task=task, root=str(tmp_path / "root"), test=Measurement(**test))
