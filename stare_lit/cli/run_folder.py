"""One folder per run: chosen new, or continued on purpose, never two runs mixed in one.

::

    <run_dir>/
    ├── config.yaml        what was asked for, complete; `config_2.yaml` and so on for each time the run was continued
    ├── checkpoints/       where a ModelCheckpoint without a `dirpath` writes
    └── logs/              where loggers without a `save_dir` write
"""

import os
from contextlib import ExitStack
from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment

from stare_lit.data.lock import LOCK, lock_folder

ROOT = Path("runs")
CHECKPOINTS = "checkpoints"
LOGS = "logs"
RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK")
RUN_DIR_VARIABLE = "STARE_RUN_DIR"  # tells the processes that a multi-process launcher starts which folder the first one chose


def choose_run_dir(run_dir: str | None, ckpt_path: str | None, *, name: str, held: ExitStack) -> Path:
    """The folder of this run: ``run_dir``, or the first free number under ``runs/<name>/`` where it is None.

    A folder that holds a run is continued where ``ckpt_path`` is one of its own checkpoints (or ``last``, ``best``), or where Slurm has queued the job
    again; otherwise it is an error.
    So is one that another process is writing to: its lock is kept in ``held``, and gone with this process.
    """
    if any(int(os.environ.get(name) or 0) > 0 for name in RANKS):
        agreed = run_dir or os.environ.get(RUN_DIR_VARIABLE)
        if agreed is None:
            raise ValueError("run_dir=None: processes started by an outside launcher (torchrun, Slurm) cannot agree on a new folder; give --run_dir")
        return Path(agreed)
    if run_dir is None:
        if ckpt_path in ("last", "best", "hpc"):
            raise ValueError(f"ckpt_path={ckpt_path!r} needs the run to continue: give --run_dir too, or the path of a checkpoint file")
        chosen = next(folder for number in range(1, 10**6) if _free(folder := ROOT / name / f"{number:03d}", held))
    else:
        chosen = Path(run_dir)
        if ckpt_path == "last" and not holds_run(chosen):
            raise ValueError(f"ckpt_path='last': there is no run in {chosen}; give its --run_dir, or the path of a checkpoint file")
        if holds_run(chosen) and not _is_own_checkpoint(chosen, ckpt_path) and not _queued_again(chosen, ckpt_path):
            raise ValueError(
                f"run_dir={run_dir!r} already holds a run. Continue it (--run_dir {run_dir} --ckpt_path last), choose another --run_dir, or leave run_dir "
                "out to get a new folder."
            )
        held.callback(lock_folder(chosen, argument="run_dir").close)
    os.environ[RUN_DIR_VARIABLE] = str(chosen)
    return chosen


def fill_run_dir(trainer: Namespace, run_dir: Path) -> None:
    """Write the folders of this run into a parsed ``trainer`` configuration wherever the user left them open (in place)."""
    trainer.default_root_dir = trainer.default_root_dir or str(run_dir)
    for logger in _parts(trainer.logger):
        if _is_open(logger, "save_dir"):
            logger.init_args.save_dir = str(run_dir / LOGS)
    for callback in _parts(trainer.callbacks):
        if callback.class_path.endswith("ModelCheckpoint") and _is_open(callback, "dirpath"):
            callback.init_args.dirpath = str(run_dir / CHECKPOINTS)


def next_config_path(run_dir: Path) -> Path:
    """``config.yaml``, or the first free ``config_<n>.yaml`` of a continued run."""
    path, number = run_dir / "config.yaml", 2
    while path.exists():
        path, number = run_dir / f"config_{number}.yaml", number + 1
    return path


def holds_run(folder: Path) -> bool:
    """Whether anything was begun in ``folder``; a lock alone is none."""
    return folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()))


def _free(folder: Path, held: ExitStack) -> bool:
    """Whether ``folder`` holds no run and nobody else has just chosen it; then it is ours."""
    if holds_run(folder):
        return False
    try:
        held.callback(lock_folder(folder, argument="run_dir").close)
    except ValueError:
        return False
    return True


def _is_own_checkpoint(run_dir: Path, ckpt_path: str | None) -> bool:
    return ckpt_path is not None and (ckpt_path in ("last", "best", "hpc") or Path(ckpt_path).resolve().is_relative_to(run_dir.resolve()))


def _queued_again(run_dir: Path, ckpt_path: str | None) -> bool:
    """Whether this is a job that Slurm began anew with the same command: Lightning goes on from what it wrote at the signal."""
    return ckpt_path is None and SLURMEnvironment.detect() and any(run_dir.glob("hpc_ckpt_*.ckpt"))


def _parts(value: object) -> list[Namespace]:
    """The ``class_path`` / ``init_args`` entries of a setting that takes one part, several or none."""
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Namespace) and "class_path" in part]


def _is_open(part: Namespace, name: str) -> bool:
    """Whether ``part`` takes the argument ``name`` and the user has set neither a value nor the library's own '.'."""
    init_args = part.get("init_args") or Namespace()
    return name in init_args and init_args[name] in (None, ".", "")
