"""One cell of `ppo_baseline.py` as it learns: success on the validation seeds over environment steps and wall time."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """When a cell ends: at the target, or as censored.

    Attributes:
        target: success_once (share) that counts as learnt.
        max_steps: environment steps, over all environments.
        max_seconds: wall time without evaluations.
        every: environment steps between two evaluations.
        num_episodes, first_seed: the seeds of an evaluation, one episode each.
    """

    target: float = 0.9
    max_steps: int = 300_000
    max_seconds: float = 600.0
    every: int = 8_000
    num_episodes: int = 100
    first_seed: int = 1_000_000


@dataclass
class Curve:
    """Points of one learning run, written to ``path`` after each evaluation.

    The clock runs from ``started`` (``time.monotonic()`` of the process that started this one: imports and the start of the simulators count)
    and stands still during evaluations, whose own simulators and their start are part of the evaluation.
    """

    path: Path
    started: float
    limits: Limits
    points: list[dict[str, float]] = field(default_factory=list)
    evaluation_seconds: float = 0.0
    reached: bool = False

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Curve":
        """From the command line, see ``add_arguments``."""
        return cls(given.record, given.started, Limits(**{entry.name: getattr(given, entry.name) for entry in fields(Limits)}))

    def seconds(self) -> float:
        """Wall time so far, evaluations left out."""
        return time.monotonic() - self.started - self.evaluation_seconds

    def evaluated(self, env_steps: int, success: Sequence[bool], began: float) -> bool:
        """Add the outcome of an evaluation that began at ``time.monotonic()`` = ``began``; True where the cell is over."""
        self.points.append({"env_steps": env_steps, "seconds": began - self.started - self.evaluation_seconds, "success": sum(success) / len(success)})
        self.evaluation_seconds += time.monotonic() - began
        self.reached = self.points[-1]["success"] >= self.limits.target
        content = {"points": self.points, "evaluation_seconds": self.evaluation_seconds, "reached": self.reached, "episodes": len(success)}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.path)
        point = self.points[-1]
        print(f"{point['env_steps']} steps, {point['seconds']:.0f} s: success {point['success']:.2f}", flush=True)
        return self.reached or env_steps >= self.limits.max_steps or self.seconds() >= self.limits.max_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a cell's process is told about its curve."""
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--started", type=float, required=True, help="time.monotonic() of the parent")
    for entry in fields(Limits):
        parser.add_argument(f"--{entry.name}", type=type(entry.default), required=True)


def as_arguments(record: Path, started: float, limits: Limits) -> list[str]:
    """The same as a command line."""
    return [f"--record={record}", f"--started={started}", *(f"--{name}={value}" for name, value in asdict(limits).items())]
