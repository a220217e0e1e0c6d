"""The closed vocabulary in which a stage says when it ends: predicates over named signals.

A predicate is a frozen value: it can be compared, hashed, printed and read in a task file like a sentence. It is evaluated on a mapping
from signal name to tensor ``[*B]`` (one step) or ``[*B, T]`` (a trajectory) alike, elementwise, and gives a bool tensor of that shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

Signals: TypeAlias = Mapping[str, Float[Tensor, "*B"]]
"""Named measurements of one state: metres, radians, or flags 0/1 as floats; all of one shape ``[*B]``."""


@runtime_checkable
class Predicate(Protocol):
    """A condition on the signals of a state."""

    @property
    def signals(self) -> frozenset[str]:
        """Names of the signals that the condition reads."""

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        """Where the condition holds."""


def read(signals: Signals, name: str) -> Float[Tensor, "*B"]:
    """Signal ``name``; a ``ValueError`` that lists what there is where it is missing."""
    try:
        return signals[name]
    except KeyError:
        raise ValueError(f"signals: {name!r} is missing, present are {sorted(signals.keys())}; the environment must measure it (envs/signals.py)") from None


@dataclass(frozen=True)
class Below:
    """``x < threshold``; the threshold in the signal's unit. NaN never holds."""

    signal: str
    threshold: float

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        return read(signals, self.signal) < self.threshold


@dataclass(frozen=True)
class Above:
    """``x > threshold``; the threshold in the signal's unit. NaN never holds."""

    signal: str
    threshold: float

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        return read(signals, self.signal) > self.threshold


@dataclass(frozen=True)
class Flag:
    """A 0/1 signal is set (``x > 0.5``)."""

    signal: str

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({self.signal})

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        return read(signals, self.signal) > 0.5


@dataclass(frozen=True, init=False)
class AllOf:
    """Every part holds."""

    parts: tuple[Predicate, ...]

    def __init__(self, *parts: Predicate) -> None:
        object.__setattr__(self, "parts", _at_least_one(parts, "AllOf"))

    @property
    def signals(self) -> frozenset[str]:
        return frozenset().union(*(part.signals for part in self.parts))

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        result = self.parts[0](signals)
        for part in self.parts[1:]:
            result = result & part(signals)
        return result


@dataclass(frozen=True, init=False)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Predicate, ...]

    def __init__(self, *parts: Predicate) -> None:
        object.__setattr__(self, "parts", _at_least_one(parts, "AnyOf"))

    @property
    def signals(self) -> frozenset[str]:
        return frozenset().union(*(part.signals for part in self.parts))

    def __call__(self, signals: Signals) -> Bool[Tensor, "*B"]:
        result = self.parts[0](signals)
        for part in self.parts[1:]:
            result = result | part(signals)
        return result


def _at_least_one(parts: tuple[Predicate, ...], name: str) -> tuple[Predicate, ...]:
    if not parts:
        raise ValueError(f"{name}: needs at least one predicate, got none")
    return parts
