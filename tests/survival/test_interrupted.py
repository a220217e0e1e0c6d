"""Ctrl-C and SIGTERM end a command with exit code 130, a checkpoint to go on from and no process left; two runs never share a folder."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from toy_phases import arguments, begin, checkpoint, differences, end, in_child, metrics, stare

from stare_lit.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The working directory, with a policy to start from."""
    folder, here = tmp_path_factory.mktemp("interrupted"), os.getcwd()
    os.chdir(folder)
    assert stare(arguments("sft", "--trainer.max_steps=3")) == 0, Path("log.txt").read_text()[-3000:]
    yield folder
    os.chdir(here)


def slow_steps() -> None:
    """Each optimizer step takes a moment, so that a signal finds the run at work."""
    step = torch.optim.AdamW.step

    def slow(*args, **kwargs):
        time.sleep(0.1)
        return step(*args, **kwargs)

    torch.optim.AdamW.step = slow


def command(line: list[str]) -> None:
    slow_steps()
    main(line)


def with_children(process) -> list[psutil.Process]:
    run = psutil.Process(process.pid)
    return [run, *run.children(recursive=True)]


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, Path("log.txt").read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run_that_can_go_on(number):
    run_dir = Path(f"runs/{number.name}")
    line = arguments("sta_ppo", run_dir=str(run_dir))
    process = begin(command, line)
    wait_for((run_dir / "checkpoints" / "last.ckpt").is_file)
    time.sleep(0.1)
    family = with_children(process)
    os.kill(process.pid, number)
    assert end(process) == 130, Path("log.txt").read_text()[-3000:]
    assert not psutil.wait_procs(family, 5)[1]
    assert f"--run_dir {run_dir} --ckpt_path last" in Path("log.txt").read_text().splitlines()[-1]
    assert (run_dir / "last" / "model.safetensors").is_file()
    assert stare([*line, "--ckpt_path", "last"]) == 0, Path("log.txt").read_text()[-3000:]
    whole = "runs/whole"
    if not Path(whole).exists():
        assert stare(arguments("sta_ppo", run_dir=whole)) == 0
    assert not differences(checkpoint(whole), checkpoint(str(run_dir)))
    assert metrics(whole) == metrics(str(run_dir))


def test_a_run_stopped_before_its_first_checkpoint_begins_anew():
    line = arguments("sta_ppo", "--trainer.max_epochs=1", run_dir="runs/early")
    Path("runs/early").mkdir()
    Path("runs/early/config.yaml").touch()
    assert stare(line) == 2
    assert "already holds a run" in Path("log.txt").read_text().splitlines()[-1]
    assert stare([*line, "--ckpt_path", "last"]) == 0, Path("log.txt").read_text()[-3000:]


def test_the_second_run_into_a_folder_is_refused_while_the_first_lives_and_goes_on_after():
    line = arguments("sta_ppo", run_dir="runs/shared")
    process = begin(command, [*line, "--trainer.max_epochs=1000"])  # outlives the others, however busy the machine is
    wait_for(Path("runs/shared/checkpoints/last.ckpt").is_file)
    configs = set(Path("runs/shared").glob("config*"))
    for second, message in ((line, "already holds a run"), ([*line, "--ckpt_path", "last"], f"another process (process {process.pid} on")):
        assert in_child(main, second, log="second.txt") == 2
        assert message in Path("second.txt").read_text().splitlines()[-1]
    assert set(Path("runs/shared").glob("config*")) == configs
    process.kill()
    assert end(process) == -signal.SIGKILL
    more = checkpoint("runs/shared")["epoch"] + 2
    assert stare([*line, "--ckpt_path", "last", f"--trainer.max_epochs={more}"]) == 0, Path("log.txt").read_text()[-3000:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_the_processes_of_a_collection_end_with_it(number):
    line = ["demos", "--task=Toy-v0", "--num_episodes=100000", "--image_size=16", "--num_workers=2", f"--out=data/{number.name}"]
    process = begin(main, line)
    wait_for(Path(f"data/{number.name}/shards/000001").is_dir)
    family = with_children(process)
    assert len(family) >= 3
    os.kill(process.pid, number)
    assert end(process) == (130 if number == signal.SIGTERM else -signal.SIGKILL), Path("log.txt").read_text()[-3000:]
    assert not psutil.wait_procs(family, 10)[1]
