"""Runs one cell of the ablation matrix and keeps what it measured, for good."""

import json
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from curve import FILE as CURVE
from plan import ROOT, Cell, Matrix, Variant, fit_command, rollouts_command, test_command
from rich.console import Console

from stare_lit import keys
from stare_lit.callbacks.provenance import fingerprint
from stare_lit.cli.steps import Step, run_step
from stare_lit.data.offline import rollout_folder
from stare_lit.data.trajectories import Trajectories
from stare_lit.evaluation.evaluate import measure_of
from stare_lit.evaluation.report import hardware, package_versions, write_json
from stare_lit.models.vla import VLAPolicy


def result_path(results: Path, variant: Variant, cell: str, seed: int) -> Path:
    """Where the cell is kept once it is finished."""
    return results / variant.name / f"{cell}-seed{seed}.json"


def finished(matrix: Matrix, variant: Variant, cell: str, seed: int, results: Path) -> dict[str, Any] | None:
    """What the cell measured, None where it is not finished. Raises ValueError where that was with other settings: it is never overwritten."""
    path = result_path(results, variant, cell, seed)
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    if stored["digest"] != matrix.digest(variant, cell):
        raise ValueError(
            f"results={str(results)!r}: {path.name} of {variant.name} was measured with other settings than the present matrix and configurations; a finished "
            f"cell is never overwritten: choose another --results and --root, or put the settings back"
        )
    return stored


def check_start(matrix: Matrix, variant: Variant, cell: str, seed: int, root: Path, results: Path) -> None:
    """Raises ValueError where the policy that ``cell`` starts from is finished, but does not lie below ``root`` with the weights that were measured."""
    after = matrix.cells[cell].after
    before = None if after is None else finished(matrix, variant, after, seed, results)
    if before is None:
        return
    policy = root / variant.name / f"seed{seed}" / str(after) / matrix.policy
    try:
        found = fingerprint(policy)
    except ValueError:
        found = "none"
    if found != before["policy"]:
        raise ValueError(
            f"root={str(root)!r}: {variant.name} seed {seed}: {cell} starts from {after}, which was measured, but {policy} is not its policy "
            f"(found {found[:12]}, measured {before['policy'][:12]}); begin the seed anew with another --results and --root, or bring the folder back"
        )


def run_cell(matrix: Matrix, variant: Variant, name: str, seed: int, *, root: Path, results: Path, out: Console) -> dict[str, Any]:
    """One cell, whose ``after`` is finished. A run that was killed goes on from its last checkpoint.

    Raises:
        RuntimeError: one of its commands failed.
    """
    if (stored := finished(matrix, variant, name, seed, results)) is not None:
        return stored
    cell, folder = matrix.cells[name], root / variant.name / f"seed{seed}"
    before = finished(matrix, variant, cell.after, seed, results) if cell.after is not None else None
    commands = {"fit": fit_command(matrix, variant, cell, seed, folder), "test": test_command(matrix, variant, cell, folder)}
    seconds = {}
    started_with = {"digest": matrix.digest(variant, name), "commit": commit()}  # of what is about to run, not of what lies there when it ends
    if cell.phase == "preference":
        commands = {"rollouts": rollouts_command(matrix, variant, cell, seed, folder)} | commands
    for kind, command in commands.items():
        shared = kind == "rollouts" and before is not None  # rollouts of the policy below are shared by the cells on it
        of, digest = (cell.after, before["digest"]) if shared else (name, started_with["digest"])
        run_dir, record = folder / name if kind == "fit" else None, folder / f"{of}-{kind}.json"
        step = Step(f"{variant.name} seed {seed}: {of} {kind}", tuple(command), record, run_dir, digest)
        seconds[kind] = run_step(step, out)
    points = json.loads((folder / name / CURVE).read_text())["points"]
    env_steps = _env_steps(matrix, variant, cell, folder, points)
    training = seconds["fit"] + seconds.get("rollouts", 0.0)
    test = json.loads((folder / f"{name}-test-report.json").read_text())["results"]["policy"]
    found = {
        "cell": name,
        "task": variant.task,
        "observation": variant.observation,
        "seed": seed,
        "after": cell.after,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **started_with,
        "policy": fingerprint(folder / name / matrix.policy),
        "test": {key: value for key, value in test.items() if key != "episodes"},
        "test_seeds": [min(test["episodes"]["seeds"]), max(test["episodes"]["seeds"])],
        "test_successes": [int(success) for success in test["episodes"][measure_of(variant.task)]],  # from the first test seed on
        "env_steps": {"own": env_steps, "all": env_steps + (before["env_steps"]["all"] if before else 0)},
        "seconds": seconds | {"all": training + (before["seconds"]["all"] if before else 0.0)},
        "curve": points,
        "commands": {kind: [word.replace(str(folder), "{folder}") for word in command] for kind, command in commands.items()},
        "hardware": hardware(),
        "versions": package_versions(),
    }
    path = result_path(results, variant, name, seed)
    if not path.is_file():  # else another process was quicker: what is there stays
        write_json(path, found)
    out.print(f"{time.strftime('%H:%M')} {variant.name} seed {seed}: {name}: success {test[measure_of(variant.task)]['value']:.3f} on the test seeds -> {path}")
    return found


def _env_steps(matrix: Matrix, variant: Variant, cell: Cell, folder: Path, points: list[dict[str, Any]]) -> int:
    """Environment steps of a cell alone: those of the demonstrations that succeeded, of the rollouts, or of the rounds."""
    if cell.phase == "interaction":
        return points[-1]["env_steps"]
    if cell.phase == "imitation":
        return int(Trajectories(folder / "demos").episodes["length"].sum())
    below = VLAPolicy.from_pretrained(folder / str(cell.after) / matrix.policy)
    rollouts = Trajectories(rollout_folder(folder / f"{cell.after}-rollouts", variant.task, below))  # beside it may lie those of an earlier policy
    num_steps = keys.next_(keys.NUM_STEPS)
    return int(rollouts.rows(torch.arange(len(rollouts)), [num_steps])[num_steps].sum())


def commit() -> str | None:
    """Of the repository, with `+` where tracked files differ from it; None where there is none."""
    try:
        said = [
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] + ("+" if said[1] else "")
