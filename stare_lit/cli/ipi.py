"""``stare ipi``: imitation, preference and interaction one after the other, on one lineage of checkpoints.

Each phase is a ``stare`` command of its own process, so that the next one starts with clean memory. Everything lies under one folder::

    <root>/
    ├── demos.json, <phase>.json    command, state and wall time over all attempts
    ├── <phase>/                    run folder of the phase (see cli/run_folder.py), with best/ and last/ policies
    ├── <phase>-test.json, .mp4     its policy on the test split
    └── report.json                 all of it
"""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stare_lit.callbacks.provenance import fingerprint, lineage
from stare_lit.cli.eval import evaluate_checkpoint
from stare_lit.cli.steps import Step, run_step
from stare_lit.data.lock import lock_folder
from stare_lit.envs.factory import check_env, envs_for
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.evaluate import Evaluation, full_horizon
from stare_lit.evaluation.report import console, report, stage_table, write_json

PLACEHOLDERS = "{start}, {root}, {task}"


@dataclass(frozen=True)
class Phase:
    """One phase: a configuration of ``stare fit``, and what ``ipi`` changes in it.

    Args:
        name: folder below the root, and row of the report.
        config: configuration file of ``stare fit``.
        arguments: further arguments; ``{start}`` is the policy folder of the phase before, ``{root}`` the root, ``{task}`` the task. Without a
            ``--data.task`` (or ``--data.tasks``) among them the phase is trained on the task, whatever its configuration says.
        policy: which policy folder of the run goes on to the next phase and to the test.
    """

    name: str
    config: str
    arguments: tuple[str, ...] = ()
    policy: str = "best"


@dataclass(frozen=True)
class Measurement:
    """How each phase's policy is measured at the end, once, on seeds that nothing was chosen on.

    Args:
        num_episodes: test seeds.
        temperature: 0 is greedy.
        num_envs: environments side by side.
        num_workers: processes for them; null: one a core.
        environment: further settings of the environment.
    """

    num_episodes: int = 200
    temperature: float = 0.0
    num_envs: int = 8
    num_workers: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def check(self, task: str) -> None:
        """Raises ValueError for what could not be measured on ``task``: told before the phases, not after them."""
        if self.temperature < 0:
            raise ValueError(f"test.temperature={self.temperature}: 0 is greedy; give 0 or more")
        num_envs = envs_for(len(split_seeds("test", self.num_episodes)), self.num_envs, self.num_workers)
        check_env(task, num_envs, num_workers=self.num_workers, **full_horizon({}, self.environment))


def ipi(
    phases: list[Phase],
    task: str = "PushCube-v1",
    root: str = "runs/ipi",
    demos: list[str] | None = None,
    start: str | None = None,
    until: str | None = None,
    test: Measurement | None = None,
) -> None:
    """All phases on one lineage of checkpoints. Run it again to go on: finished phases are skipped, a killed one continues from its last checkpoint.

    Args:
        phases: in order; each starts from the policy that the one before left.
        task: environment id.
        root: folder of everything.
        demos: arguments of ``stare demos`` for the demonstrations, run first; null: the first phase sees to them itself.
        start: policy folder that the first phase starts from, where its arguments ask for ``{start}``.
        until: name of the last phase to run; null: all.
        test: how the policies are measured, after the training clock has stopped; null: 200 test seeds, greedy.
    """
    phases, folder, test = _checked(phases, until), Path(root), test or Measurement()
    test.check(task)
    steps: list[Step] = []
    values = {"root": str(folder), "task": task, "start": start}
    if demos is not None:
        steps.append(Step("demos", ("demos", *_filled(demos, values, "demos")), record=folder / "demos.json"))
    for phase in phases:
        run = folder / phase.name
        command = ("fit", "--config", phase.config, "--run_dir", str(run), *_filled(_on_task(phase.arguments), values, phase.name))
        steps.append(Step(phase.name, command, record=folder / f"{phase.name}.json", run_dir=run))
        values["start"] = str(run / phase.policy)
    out = console()
    with lock_folder(folder, argument="root"):
        seconds = {step.name: run_step(step, out) for step in steps}
        results = {phase.name: _tested(folder / phase.name, phase.policy, task, test) for phase in phases}
        _show(results, seconds, folder, phases, task, test, out)


def _checked(phases: Sequence[Phase], until: str | None) -> list[Phase]:
    names = [phase.name for phase in phases]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"phases: names {names} must be unique, and at least one; see configs/ipi.yaml")
    if until is not None and until not in names:
        raise ValueError(f"until={until!r}: choose one of {', '.join(names)}, or leave it out to run all")
    for phase in phases:
        if not Path(phase.config).is_file():
            raise ValueError(f"phases: {phase.name}: config={phase.config!r} is not a file here; run from the folder that holds configs/, or give its path")
    return list(phases if until is None else phases[: names.index(until) + 1])


def _on_task(arguments: Sequence[str]) -> tuple[str, ...]:
    """``arguments``, at whose end the phase is told its task, over what its configurations say; unless they name one (or several)."""
    return (*arguments, *(() if any(word.startswith("--data.task") for word in arguments) else ("--data.task={task}",)))


def _filled(arguments: Sequence[str], values: dict[str, str | None], name: str) -> list[str]:
    """``arguments`` with their placeholders filled; nothing else in braces is touched."""
    filled = []
    for argument in arguments:
        for key, value in values.items():
            if f"{{{key}}}" in argument:
                if value is None:
                    raise ValueError(f"{name}: {argument!r} asks for {{{key}}}, but no phase came before; give --{key} or take it out (known: {PLACEHOLDERS})")
                argument = argument.replace(f"{{{key}}}", value)
        filled.append(argument)
    return filled


def _tested(run: Path, policy: str, task: str, test: Measurement) -> Evaluation:
    """The phase's policy on the test split, measured once: a result for the same weights and settings is read again, not repeated."""
    folder, path = run / policy, run.with_name(f"{run.name}-test.json")
    settings = {"task": task, "split": "test", "fingerprint": fingerprint(folder), **vars(test)}
    with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: measured again
        stored = json.loads(path.read_text())
        if stored["config"] == settings:
            return Evaluation.from_dict(stored["results"][run.name]["episodes"])
    result = evaluate_checkpoint(folder, task, split="test", video=path.with_suffix(".mp4"), **vars(test))
    write_json(path, report({run.name: result}, config=settings) | {"lineage": lineage(folder)})
    return result


def _show(results: dict[str, Evaluation], seconds: dict[str, float], folder: Path, phases: list[Phase], task: str, test: Measurement, out: Console) -> None:
    """The table, the JSON, and what to run next."""
    names = list(results)
    gains = {after: results[after].gain_over(results[before]) for before, after in zip(names, names[1:], strict=False)}
    table = Table(title=f"{task}, {test.num_episodes} test seeds, temperature {test.temperature:g}", title_justify="left")
    for column in ("phase", "success_once [95 %]", "success_at_end [95 %]", "paired gain over the phase before [95 %]", "wall time (min)"):
        table.add_column(column)
    if "demos" in seconds:
        table.add_row("demos", "", "", "", f"{seconds['demos'] / 60:.1f}")
    for name, result in results.items():
        table.add_row(name, str(result.once), str(result.at_end), str(gains.get(name, "")), f"{seconds[name] / 60:.1f}")
    table.add_section()
    table.add_row("all", "", "", "", f"{sum(seconds.values()) / 60:.1f}")
    last = phases[-1]
    config = {"task": task, "phases": [vars(phase) for phase in phases], "test": vars(test)}
    content = report(results, gains, config=config) | {"wall_time_seconds": seconds, "lineage": lineage(folder / last.name / last.policy)}
    written = write_json(folder / "report.json", content)
    out.print(table, stage_table(results[last.name]))
    out.print(f"policy  {folder / last.name / last.policy}\nreport  {written}")
    again = shlex.join(["stare", "eval", "--checkpoint", str(folder / last.name / last.policy), "--task", task, "--video", "film.mp4"])
    out.print(f"next    {again}")
