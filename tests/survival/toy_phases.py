"""The three phases on the toy, so small that one takes a second or two; run in a process of its own that may be killed, and compared to the bit."""

import csv
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

CONFIGS = Path(__file__).parents[2] / "configs" / "toy"
PHASES = ("sft", "sta_tpo", "sta_ppo")
POLICY = {"image_size": 16, "chunk_size": 2, "num_bins": 8, "hidden_size": 32, "num_layers": 1, "channels": [8, 16], "keypoints": 0, "film": False}
CLOCK = ("time/", "val/evaluation_seconds")  # columns that differ between any two runs


def _callbacks(evaluation: dict[str, Any], checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    small = {"num_episodes": 6, "num_envs": 6, "video_episodes": 0}
    return [
        {"class_path": "stare_lit.callbacks.RolloutEvaluation", "init_args": small | evaluation},
        {"class_path": "stare_lit.callbacks.StageMetrics"},
        {"class_path": "stare_lit.callbacks.NonFiniteGuard"},
        {"class_path": "stare_lit.callbacks.Provenance"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True} | checkpoint},
    ]


OVERLAYS = {
    "sft": {
        "model": {"init_args": {"policy": {"init_args": POLICY}, "warmup_steps": 2}},
        "data": {"init_args": {"num_episodes": 12, "batch_size": 16, "image_size": 16, "chunk_size": 2, "max_shift": 1}},
        "trainer": {"max_steps": 12, "callbacks": _callbacks({"every_n_steps": 6, "at_start": False}, {"every_n_train_steps": 3})},
    },
    "sta_tpo": {
        "model": {"init_args": {"policy": {"init_args": {"path": "runs/sft/last"}}, "warmup_steps": 2, "learning_rate": 1e-3}},
        "data": {
            "init_args": {
                "image_size": 16,
                "rollouts": {"num_states": 8, "num_samples": 4, "num_envs": 8},
                "rule": {"min_gap": 0.0},
                "batch_size": 4,
                "validation_fraction": 0.25,
            }
        },
        "trainer": {"max_epochs": 3, "callbacks": _callbacks({"every_n_epochs": 2}, {})},
    },
    "sta_ppo": {
        "model": {"init_args": {"policy": {"init_args": {"path": "runs/sft/last"}}, "minibatch_size": 8, "learning_rate": 1e-3, "num_epochs": 2}},
        "data": {"init_args": {"num_envs": 4, "decisions_per_env": 6}},
        "trainer": {"max_epochs": 4, "callbacks": _callbacks({"every_n_epochs": 3}, {})},
    },
}
for _overlay in OVERLAYS.values():
    _overlay["trainer"] |= {"log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False}


def arguments(phase: str, *more: str, run_dir: str | None = None) -> list[str]:
    """Of ``stare fit``, relative to the working directory."""
    overlay = Path(f"{phase}.yaml")
    if not overlay.exists():
        overlay.write_text(yaml.safe_dump(OVERLAYS[phase]))
    return ["fit", "--config", str(CONFIGS / f"{phase}.yaml"), "--config", str(overlay), "--run_dir", run_dir or f"runs/{phase}", *more]


def begin(function: Callable[..., Any], *args: Any, log: str = "log.txt") -> Any:
    """Starts ``function`` in a forked process (which has imported everything already), its output in a file."""

    def body() -> None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        function(*args)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


def end(process: Any, *, log: str = "log.txt") -> int:
    """Its exit code; negative is a signal."""
    process.join(900)  # seconds; on a busy machine a second takes a minute
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"hangs: {Path(log).read_text()[-2000:]}")
    return process.exitcode


def in_child(function: Callable[..., Any], *args: Any, log: str = "log.txt") -> int:
    """Both."""
    return end(begin(function, *args, log=log), log=log)


def stare(line: list[str], *, before: Callable[[], Any] | None = None) -> int:
    """``stare`` with these arguments in a child; ``before`` is called there first."""

    def command() -> None:
        from stare_lit.cli.main import main

        torch.manual_seed(os.getpid())  # as in any other process
        if before is not None:
            before()
        main(line)

    return in_child(command)


def die_at_call(owner: Any, name: str, number: int) -> Callable[[], None]:
    """Makes the process kill itself, as ``kill -9`` does, just before the ``number``-th call (from 1) of ``owner.name``."""
    return signal_at_call(owner, name, number, signal.SIGKILL)


def signal_at_call(owner: Any, name: str, number: int, kind: signal.Signals) -> Callable[[], None]:
    """Makes the process send itself a signal there."""

    def patch() -> None:
        original, calls = getattr(owner, name), [0]

        def dying(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), kind)
            return original(*args, **kwargs)

        setattr(owner, name, dying)

    return patch


def metrics(run_dir: str) -> list[dict[str, str]]:
    """Rows of the newest metrics.csv, as text, without what the clock says."""
    file = max(Path(run_dir).glob("**/metrics.csv"), key=lambda path: int(path.parent.name.removeprefix("version_")))
    with file.open(newline="") as lines:
        return [{name: value for name, value in row.items() if value and not name.startswith(CLOCK)} for row in csv.DictReader(lines)]


def checkpoint(run_dir: str) -> dict[str, Any]:
    """The last checkpoint without what names the run, its time and its files."""
    content = torch.load(Path(run_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    content.pop("provenance")
    del content["exact_resume"]["metrics"]
    for name, state in content["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            content["callbacks"][name] = None
        else:
            state.pop("seconds", None)
    return content


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ, to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        return [found for key in a.keys() | b.keys() for found in differences(a.get(key), b.get(key), f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b or (a != a and b != b) else [path]
