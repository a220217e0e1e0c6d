"""One ``stare`` command as a step of a longer job: in a process of its own, timed, and skipped or continued when the job is run again."""

import ctypes
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from stare_lit.cli.run_folder import CHECKPOINTS, holds_run
from stare_lit.data.lock import lock_folder
from stare_lit.evaluation.report import write_json

TICK = 5.0  # seconds between two notes of the wall time, so that a killed job knows what it has used
PATIENCE = 60.0  # seconds that an interrupted child has to save
PR_SET_PDEATHSIG = 1
EXIT_USAGE = 2  # of `stare`: wrong input, told before work starts


@dataclass(frozen=True)
class Step:
    """A command and where it is kept track of.

    Args:
        name: for messages.
        command: words after ``stare``.
        record: JSON with the command, its state and its wall time over all attempts.
        run_dir: run folder of a ``fit`` step, which is continued from its last checkpoint; one without a checkpoint starts anew.
        digest: of what the command reads besides its words, such as the contents of its configurations; "" where nobody looks.
    """

    name: str
    command: tuple[str, ...]
    record: Path
    run_dir: Path | None = None
    digest: str = ""


def run_step(step: Step, console: Console) -> float:
    """Run ``step`` unless it is finished, and return its wall time in seconds over all attempts.

    Raises:
        ValueError: it was begun with another command, or with other contents of what that reads.
        RuntimeError: it failed.
    """
    record = _read(step)
    if (record["command"], record["digest"]) != (list(step.command), step.digest):
        raise ValueError(
            f"{step.name}: {step.record} was begun with other settings ({shlex.join(record['command'])}); choose another --root or delete that folder"
        )
    if record["finished"]:
        console.print(f"{step.name}: finished before, in {record['seconds'] / 60:.1f} min")
        return record["seconds"]
    command = [sys.executable, "-m", "stare_lit", *step.command, *_continued(step)]
    console.rule(step.name)
    console.print(shlex.join(["stare", *command[3:]]))
    write_json(step.record, record)
    before, start = record["seconds"], time.monotonic()
    process = subprocess.Popen(command, preexec_fn=_end_with_parent)
    try:
        while True:
            try:
                code = process.wait(TICK)
                break
            except subprocess.TimeoutExpired:
                write_json(step.record, {**record, "seconds": before + time.monotonic() - start})
    except BaseException:
        _end(process)
        raise
    finally:
        record["seconds"] = before + time.monotonic() - start
        write_json(step.record, record)
    if code == 130:
        raise KeyboardInterrupt
    if code == EXIT_USAGE and (step.run_dir is None or not holds_run(step.run_dir)):
        step.record.unlink()  # nothing was begun, so other settings may follow
    if code:
        raise RuntimeError(
            f"{step.name} failed with exit code {code}: its message stands above. Mend it and run the same command again: it goes on from where this one stood"
        )
    write_json(step.record, {**record, "finished": True})
    return record["seconds"]


def _read(step: Step) -> dict[str, Any]:
    if not step.record.is_file():
        return {"command": list(step.command), "digest": step.digest, "finished": False, "seconds": 0.0}
    try:
        record = {"digest": ""} | json.loads(step.record.read_text())
        return {"command": list(record["command"]), "digest": record["digest"], "finished": record["finished"] is True, "seconds": float(record["seconds"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{step.name}: {step.record} is damaged ({error!r}); choose another --root, or delete that file and {step.run_dir}") from error


def _continued(step: Step) -> list[str]:
    """Arguments that continue a ``fit`` from its last checkpoint; what was begun and has none is removed, for there is nothing to go on from."""
    if step.run_dir is None or not holds_run(step.run_dir):
        return []
    checkpoints = sorted((step.run_dir / CHECKPOINTS).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        if not step.record.is_file():
            raise ValueError(f"{step.name}: {step.run_dir} is there already, but was not begun by this command; choose another --root or move it away")
        with lock_folder(step.run_dir, argument="run_dir"):
            shutil.rmtree(step.run_dir)
        return []
    last = [path for path in checkpoints if path.name.startswith("last")]
    return ["--ckpt_path", str((last or checkpoints)[-1])]


def _end_with_parent() -> None:
    """In the child (Linux): ask for a SIGTERM when the parent is killed, so that no training goes on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen) -> None:
    """Ctrl-C reaches the child by itself, a SIGTERM of ours alone does not; a second signal does not disturb its saving (see ``cli.main``)."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
