"""What a stage is: when it ends, whether it can be lost, and how far it is from its end.

A ``StageSpec`` is the whole stage knowledge of one task (method: *separator*, "rules per task against thresholds delta_k"). The entry
condition of stage k+1 is the end condition of stage k (paper), so a spec is an ordered tuple and the order is strict.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stare_lit.stages.predicates import Flag, Predicate, Signals, read

SUCCESS = "success"
"""The environment's own success flag; the last stage of every task ends with it, for it is the benchmark."""


@dataclass(frozen=True)
class ErrorTerm:
    """One dimensionless term of a stage's error: ``clip(|x - target| / scale, 0, 1)`` (ours; the paper gives Reach only, ``||x_ee - x_obj||``).

    ``scale`` is the length L at which the term saturates and ``target`` the wanted value, both in the signal's unit (metres, radians,
    1 for flags). ``weight`` is relative to the other terms of the stage. With ``only_below`` exceeding the target costs nothing:
    ``clip((target - x) / scale, 0, 1)``.

    Raises ``ValueError`` where scale or weight is not positive.
    """

    signal: str
    scale: float
    weight: float = 1.0
    target: float = 0.0
    only_below: bool = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale: {self.scale} for {self.signal!r} must be positive (the length at which the error saturates)")
        if not self.weight > 0:
            raise ValueError(f"weight: {self.weight} for {self.signal!r} must be positive; leave the term out instead")

    @classmethod
    def not_(cls, flag: str, weight: float = 1.0) -> "ErrorTerm":
        """``1 - flag``: full error while the flag is unset."""
        return cls(flag, scale=1.0, weight=weight, target=1.0)

    @classmethod
    def missing(cls, signal: str, target: float, weight: float = 1.0) -> "ErrorTerm":
        """``clip((target - x) / target, 0, 1)``: how much of ``target`` is still missing; more than enough costs nothing."""
        return cls(signal, scale=target, weight=weight, target=target, only_below=True)

    def __call__(self, signals: Signals) -> Float[Tensor, "*B"]:
        """The term in [0, 1], shape of the signal."""
        gap = self.target - read(signals, self.signal)
        return ((gap if self.only_below else gap.abs()) / self.scale).clamp(0.0, 1.0)


def weighted_mean(terms: tuple[ErrorTerm, ...], signals: Signals) -> Float[Tensor, "*B"]:
    """``d = sum_i w_i e_i / sum_i w_i`` in [0, 1] (ours), e_i the terms."""
    total = sum(term.weight for term in terms)
    return torch.stack([term(signals) * (term.weight / total) for term in terms]).sum(0)


@dataclass(frozen=True)
class Stage:
    """A sub-goal. It *ends* once ``ends`` holds; ``error`` says how far it is from there.

    ``keeps`` is the condition that goes on holding online after the stage has ended; the stage counts as kept while ``ends`` or ``keeps``
    is true, so ``keeps`` may be looser (hysteresis) or name later achievements that make this one unnecessary (an object that lies on
    its target need not be grasped). When neither is true the online index falls back to this stage (a dropped object). Without ``keeps``
    a stage, once ended, is never lost; only the last stage (``ends = Flag("success")``) is then kept by ``ends`` alone.
    """

    name: str
    ends: Predicate
    error: tuple[ErrorTerm, ...]
    keeps: Predicate | None = None

    @property
    def signals(self) -> frozenset[str]:
        """Names of all signals that the stage reads."""
        return self.ends.signals.union(*(frozenset({term.signal}) for term in self.error), self.keeps.signals if self.keeps else ())


@dataclass(frozen=True)
class StageSpec:
    """The stages of the task ``name`` (an environment id such as ``PushCube-v1``), in order, and the terms of the whole-task potential.

    ``whole_task`` (the ``potential`` baseline: K = 1) is the mean of the normalised reach error and the object-to-goal error.

    Raises ``ValueError`` for no stage, repeated or empty names, a stage or whole task without error terms, or a last stage that does not
    end with ``Flag("success")``.
    """

    name: str
    stages: tuple[Stage, ...]
    whole_task: tuple[ErrorTerm, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"stages: {self.name!r} has none; give at least one Stage")
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError(f"stages: names of {self.name!r} must be unique and not empty, got {self.names}")
        if self.stages[-1].ends != Flag(SUCCESS):
            raise ValueError(f"stages: the last stage of {self.name!r} must end with Flag({SUCCESS!r}), got {self.stages[-1].ends}")
        for stage in self.stages:
            if not stage.error:
                raise ValueError(f"error: stage {stage.name!r} of {self.name!r} has no ErrorTerm; its potential would be constant")
        if not self.whole_task:
            raise ValueError(f"whole_task: {self.name!r} has no ErrorTerm; give the reach and the object-to-goal term")

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.stages)

    @property
    def names(self) -> tuple[str, ...]:
        """Stage names in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def signals(self) -> frozenset[str]:
        """Names of all signals that an environment must publish for this task, ``success`` included."""
        return frozenset({SUCCESS}).union(*(stage.signals for stage in self.stages), (term.signal for term in self.whole_task))
