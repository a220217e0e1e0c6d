"""The ablation matrix as it was laid down in `matrix.yaml`: which cells there are, in which order, and the `stare` commands of each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from stare_lit.data.offline import RolloutSettings

ROOT = Path(__file__).parents[2]
MATRIX = Path(__file__).with_name("matrix.yaml")
PHASES = ("imitation", "preference", "interaction")
LOGGER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}}
KEPT = ("NonFiniteGuard", "Provenance")
DEMOS_APART, ROLLOUTS_APART = 10_000, 1_000
"""Episode seeds between the demonstrations, and the rollouts, of one seed of the matrix and those of the next: each is a replication from the start."""


@dataclass(frozen=True)
class Phase:
    """A phase on one task.

    Args:
        configs: configuration files of ``stare fit``, in order.
        arguments: further arguments.
        max_steps: cap in optimizer steps (imitation, preference: the rules find unequal numbers of pairs, so equal epochs would be unequal updates).
        max_env_steps: cap in environment steps (interaction); the round that reaches it is the last.
        every_n_steps, every_env_steps: points of the learning curve between start and end.
        statistics: the policy normalises its state.
        rollouts: of the preference phase, see ``RolloutSettings``.
    """

    configs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    max_steps: int | None = None
    max_env_steps: int | None = None
    every_n_steps: int | None = None
    every_env_steps: int | None = None
    statistics: bool = False
    rollouts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A column of the matrix: one phase, on the policy that the cell ``after`` left."""

    name: str
    phase: str
    after: str | None = None
    configs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A task seen through one kind of observation: its phases, its cells in order, and arguments of single cells."""

    task: str
    observation: str
    phases: Mapping[str, Phase]
    cells: tuple[str, ...]
    arguments: Mapping[str, Sequence[str]]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.observation}"


@dataclass(frozen=True)
class Matrix:
    """All of it, in the order of the file."""

    cells: Mapping[str, Cell]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    tables: Mapping[str, Sequence[str]]
    claims: Sequence[Sequence[str]]
    comparisons: Sequence[Sequence[str]]
    policy: str
    evaluation: Mapping[str, Any]
    test: Mapping[str, Any]
    target: float

    def variant(self, task: str, observation: str) -> Variant:
        """The one asked for. Raises ValueError where the matrix has no configurations for it."""
        for variant in self.variants:
            if (variant.task, variant.observation) == (task, observation):
                return variant
        known = ", ".join(f"{variant.task} ({variant.observation})" for variant in self.variants)
        raise ValueError(f"task={task!r}, observation={observation!r}: not in the matrix, which has {known}; add its configurations under `tasks`")

    def chain(self, name: str) -> list[Cell]:
        """The cell and what it stands on, oldest first."""
        chain = [self.cells[name]]
        while (after := chain[0].after) is not None:
            chain.insert(0, self.cells[after])
        return chain

    def digest(self, variant: Variant, name: str) -> str:
        """SHA-256 of everything that decides a cell's number but its seed: contents of its configurations, arguments, caps, evaluation."""
        parts: list[Any] = [variant.name, self.policy, dict(self.evaluation), dict(self.test)]
        for cell in self.chain(name):
            phase = variant.phases[cell.phase]
            contents = [yaml.safe_load((ROOT / path).read_text()) for path in (*phase.configs, *cell.configs)]
            parts.append([contents, vars(phase), vars(cell), list(variant.arguments.get(cell.name, ()))])
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()


def read_matrix(path: Path = MATRIX) -> Matrix:
    """Read and check. Raises ValueError that names the entry."""
    content = yaml.safe_load(path.read_text())
    cells: dict[str, Cell] = {}
    for name, given in content["cells"].items():
        cells[name] = cell = Cell(name, **_tuples(given))
        if cell.phase not in PHASES:
            raise ValueError(f"cells: {name}: phase={cell.phase!r}: choose from {', '.join(PHASES)}")
        if (cell.phase == "imitation") != (cell.after is None) or (cell.after is not None and cell.after not in [*cells][:-1]):
            raise ValueError(f"cells: {name}: after={cell.after!r}: must name a cell above it; imitation alone starts from nothing")
    tables = content["tables"]
    for name in [name for rows in (*tables.values(), *content["claims"], *content.get("comparisons", ())) for name in rows]:
        if name not in cells:
            raise ValueError(f"tables, claims, comparisons: {name!r} is no cell; choose from {', '.join(cells)}")
    variants = tuple(_variant(task, observation, given, cells, tables) for task, kinds in content["tasks"].items() for observation, given in kinds.items())
    rest = {name: content[name] for name in ("policy", "evaluation", "test", "target", "claims")} | {"comparisons": content.get("comparisons", ())}
    return Matrix(cells=cells, variants=variants, seeds=tuple(content["seeds"]), tables=tables, **rest)


def _variant(task: str, observation: str, given: dict[str, Any], cells: Mapping[str, Cell], tables: Mapping[str, Sequence[str]]) -> Variant:
    phases = {name: _phase(f"tasks: {task}: {observation}: {name}", name, given[name]) for name in PHASES if name in given}
    shown = [name for table in given.get("cells", tables) for name in tables[table]]
    wanted = tuple(name for name in cells if name in shown and name not in given.get("without", ()))
    for cell in (cells[name] for name in wanted):
        if cell.phase not in phases:
            raise ValueError(f"tasks: {task}: {observation}: cell {cell.name} needs the phase {cell.phase}; give its configurations, or leave the cell out")
        for path in (*phases[cell.phase].configs, *cell.configs):
            if not (ROOT / path).is_file():
                raise ValueError(f"tasks: {task}: {observation}: {path} is not a file; add that configuration, or take the task out of the matrix")
    return Variant(task, observation, phases, wanted, given.get("arguments", {}))


def _phase(where: str, name: str, given: Mapping[str, Any]) -> Phase:
    known, cap = [field.name for field in fields(Phase)], "max_env_steps" if name == "interaction" else "max_steps"
    if unknown := set(given) - set(known):
        raise ValueError(f"{where}: {', '.join(sorted(unknown))}: no such setting; choose from {', '.join(known)}")
    if given.get(cap) is None:
        raise ValueError(f"{where}: {cap} is missing: every phase has its cap, fixed before the first run")
    return Phase(**_tuples(given))


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def fit_command(matrix: Matrix, variant: Variant, cell: Cell, seed: int, folder: Path) -> list[str]:
    """Words after ``stare`` that run ``cell`` in ``folder``, the folder of this task and seed."""
    phase = variant.phases[cell.phase]
    words = ["fit", *(f"--config={path}" for path in (*phase.configs, *cell.configs)), f"--run_dir={folder / cell.name}"]
    words += [f"--seed_everything={seed}", f"--data.seed={seed}", "--trainer.enable_progress_bar=false", f"--trainer.logger={json.dumps(LOGGER)}"]
    if cell.after is not None:
        words += [f"--data.task={variant.task}", f"--model.policy.path={folder / cell.after / matrix.policy}"]
    if cell.phase == "imitation":
        words += [f"--data.folder={folder / 'demos'}", f"--data.first_seed={DEMOS_APART * seed}", f"--trainer.max_steps={phase.max_steps}"]
    elif cell.phase == "preference":
        words += [
            f"--data.folder={folder / f'{cell.after}-rollouts'}",
            f"--trainer.max_steps={phase.max_steps}",
            "--trainer.max_epochs=-1",
            *_rollout_settings(phase, seed, "--data.rollouts."),
        ]
    else:
        words += ["--trainer.max_epochs=-1"]
    own = {**matrix.evaluation, "task": variant.task, "video_episodes": 0, "at_start": cell.phase != "imitation"}
    own |= {name: getattr(phase, name) for name in ("every_n_steps", "every_env_steps", "max_env_steps")}
    own["every_n_epochs"] = None  # else that of the configuration's own RolloutEvaluation would stay
    callbacks = [{"class_path": "stare_lit.callbacks.StateStatistics"}] if phase.statistics else []
    callbacks += [{"class_path": "curve.Curve", "init_args": own}, *({"class_path": f"stare_lit.callbacks.{name}"} for name in KEPT)]
    callbacks += [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}]
    return [*words, f"--trainer.callbacks={json.dumps(callbacks)}", *phase.arguments, *cell.arguments, *variant.arguments.get(cell.name, ())]


def rollouts_command(matrix: Matrix, variant: Variant, cell: Cell, seed: int, folder: Path) -> list[str]:
    """Words after ``stare`` that sample the rollouts of a preference cell; those of the same policy are shared."""
    phase = variant.phases[cell.phase]
    words = ["rollouts", f"--policy={folder / str(cell.after) / matrix.policy}", f"--task={variant.task}", f"--folder={folder / f'{cell.after}-rollouts'}"]
    return [*words, *_rollout_settings(phase, seed, "--settings.")]


def test_command(matrix: Matrix, variant: Variant, cell: Cell, folder: Path) -> list[str]:
    """Words after ``stare`` that measure the policy which the cell has left."""
    words = ["eval", f"--checkpoint={folder / cell.name / matrix.policy}", f"--task={variant.task}", "--split=test"]
    return [*words, f"--output={folder / f'{cell.name}-test-report.json'}", *(f"--{name}={value}" for name, value in matrix.test.items())]


def _rollout_settings(phase: Phase, seed: int, prefix: str) -> list[str]:
    settings = {"first_seed": RolloutSettings.first_seed + ROLLOUTS_APART * seed, **phase.rollouts}
    return [f"{prefix}{name}={value}" for name, value in settings.items()]
