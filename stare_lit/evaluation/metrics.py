"""Rates with intervals, and the paired gain of one policy over another on the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from scipy.stats import binomtest
from torch import Tensor


@dataclass(frozen=True)
class Rate:
    """``successes`` out of ``trials`` with a Wilson score interval [``low``, ``high``]; all three of value, low, high are nan without trials."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.successes / self.trials if self.trials else float("nan")

    def __str__(self) -> str:
        if not self.trials:
            return "n/a (0)"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] ({self.successes}/{self.trials})"


def wilson_rate(successes: int, trials: int, *, confidence: float = 0.95) -> Rate:
    """Wilson's score interval of a proportion (Wilson 1927, as implemented in scipy)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes} of trials={trials}: successes lie between 0 and trials")
    if trials == 0:
        return Rate(0, 0, float("nan"), float("nan"))
    interval = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return Rate(successes, trials, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class PairedGain:
    """Difference of two success rates on the same seeds: ``gain`` in [``low``, ``high``].

    ``wins``: seeds that only the later policy solves; ``losses``: seeds that only the earlier one solves; ``p_value``: McNemar's exact test, two-sided.
    """

    gain: float
    low: float
    high: float
    wins: int
    losses: int
    trials: int
    p_value: float

    def __str__(self) -> str:
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.gain:+.1f} points {interval} (+{self.wins} -{self.losses} of {self.trials}, p={self.p_value:.2g})"


def paired_gain(before: Sequence[bool], after: Sequence[bool], *, confidence: float = 0.95) -> PairedGain:
    """Gain of ``after`` over ``before``, entry i of both measured from the same seed.

    Interval: Newcombe's hybrid score interval for paired proportions with the continuity-corrected correlation
    (Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17:2635-2650, method 10). p-value: McNemar's exact test on the discordant pairs.

    Raises:
        ValueError: sequences of unequal length, or empty.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"before has {len(before)} episodes, after {len(after)}: both need the same seeds in the same order, at least one")
    n = len(before)
    both = sum(bool(x) and bool(y) for x, y in zip(before, after, strict=True))
    wins = sum(bool(y) and not x for x, y in zip(before, after, strict=True))
    losses = sum(bool(x) and not y for x, y in zip(before, after, strict=True))
    neither = n - both - wins - losses
    new, old = wilson_rate(both + wins, n, confidence=confidence), wilson_rate(both + losses, n, confidence=confidence)
    gain, phi = (wins - losses) / n, _corrected_phi(both, wins, losses, neither)
    new_down, new_up, old_down, old_up = new.value - new.low, new.high - new.value, old.value - old.low, old.high - old.value
    down = sqrt(max(new_down**2 - 2 * phi * new_down * old_up + old_up**2, 0.0))
    up = sqrt(max(old_down**2 - 2 * phi * old_down * new_up + new_up**2, 0.0))
    p_value = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return PairedGain(gain, gain - down, gain + up, wins, losses, n, p_value)


def _corrected_phi(both: int, wins: int, losses: int, neither: int) -> float:
    """Correlation of the paired outcomes; a positive one is shrunk by n/2 (Newcombe 1998, method 10); 0 where a margin is empty."""
    margins = (both + wins) * (losses + neither) * (both + losses) * (wins + neither)
    if margins == 0:
        return 0.0
    covariance = float(both * neither - wins * losses)
    if covariance > 0:
        covariance = max(covariance - (both + wins + losses + neither) / 2, 0.0)
    return covariance / sqrt(margins)


def stage_funnel(stages_done: Tensor, names: Sequence[str]) -> dict[str, Rate]:
    """P(stage k done | stage k-1 done) for each stage, with intervals.

    Args:
        stages_done: int64 [N], how many stages each episode completed at its best moment (K = all).
        names: the K stages in order.
    """
    done = [int((stages_done >= k).sum()) for k in range(len(names) + 1)]
    return {name: wilson_rate(done[k + 1], done[k]) for k, name in enumerate(names)}


def stage_reached(stages_done: Tensor, names: Sequence[str]) -> dict[str, Rate]:
    """Share of all episodes that completed each stage at some moment; same arguments as :func:`stage_funnel`."""
    return {name: wilson_rate(int((stages_done > k).sum()), len(stages_done)) for k, name in enumerate(names)}


def mean_or_nan(values: Tensor) -> float:
    """Mean over the entries that are not nan; nan where there is none."""
    return float(torch.nanmean(values.double())) if values.numel() else float("nan")
