"""Finished cells, their statistics and tables: interquartile means over runs with stratified bootstrap intervals (rliable, arXiv 2108.13264)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plan import Matrix, Variant
from rich import box
from rich.markup import escape
from rich.table import Table
from scipy.stats import bootstrap, trim_mean, ttest_1samp

from stare_lit.evaluation.evaluate import measure_of
from stare_lit.evaluation.metrics import paired_gain

RESAMPLES = 2000
FEWEST = 4
"""Runs of which an interval is drawn by resampling them: of two or three it would be their range, which holds the mean half of the time."""
Runs = dict[tuple[str, str], list[dict[str, Any]]]
"""Finished cells by variant and cell name, one entry a seed."""


def read_results(results: Path) -> Runs:
    """All cells that are finished, whatever the present matrix says of them."""
    found: Runs = {}
    for path in sorted(results.glob("*/*.json")):
        row = json.loads(path.read_text())
        found.setdefault((f"{row['task']}-{row['observation']}", row["cell"]), []).append(row)
    return found


def iqm(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of all runs along ``axis``; with fewer than four runs, of all."""
    return trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def interval(statistic: Callable[..., np.ndarray], *strata: Sequence[float]) -> tuple[float, float, float]:
    """``statistic`` of the runs of each stratum (task), and its 95 % percentile interval from resampling runs within each; nan with less than ``FEWEST``."""
    samples = tuple(np.asarray(stratum, dtype=float) for stratum in strata)
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < FEWEST:
        return value, float("nan"), float("nan")
    found = bootstrap(samples, statistic, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=np.random.default_rng(0))
    return value, float(found.confidence_interval.low), float(found.confidence_interval.high)


def gain(better: list[dict[str, Any]], worse: list[dict[str, Any]]) -> tuple[float, float, float, int] | None:
    """Success of one cell less that of another, paired by task and seed: mean difference, 95 % interval and how many pairs; None without one.

    The interval is the wider one of two: over all test episodes, which both cells share, and the paired t interval over the pairs, of which there must be
    several that differ (two that happen to agree say nothing). nan where neither is known.
    """
    pairs = [(a, b) for a in better for b in worse if all(a[key] == b[key] for key in ("task", "observation", "seed"))]
    if not pairs:
        return None
    difference = np.array(_test([a for a, _ in pairs])) - np.array(_test([b for _, b in pairs]))
    limits = []
    if all("test_successes" in row for pair in pairs for row in pair):
        episodes = [np.concatenate([pair[side]["test_successes"] for pair in pairs]).tolist() for side in (1, 0)]
        limits.append(paired_gain(*episodes))
    if np.ptp(difference) > 1e-9:
        limits.append(ttest_1samp(difference, 0.0).confidence_interval(0.95))
    low, high = min((each.low for each in limits), default=np.nan), max((each.high for each in limits), default=np.nan)
    mean = round(float(difference.mean()), 9) + 0.0  # seeds that cancel out are no difference, whatever is left of the sum
    return mean, float(low), float(high), len(pairs)


def steps_to(row: dict[str, Any], target: float) -> float:
    """Environment steps of the phase until its curve first is at ``target``; infinite where it never is."""
    return next((float(point["env_steps"]) for point in row["curve"] if point["success"] >= target), float("inf"))


def _test(rows: list[dict[str, Any]]) -> list[float]:
    return [row["test"][measure_of(row["task"])]["value"] for row in rows]


def _upright(rows: list[dict[str, Any]]) -> str:
    """Share of the test episodes whose success the true geometry confirms, mean over runs in %; nothing on a task without such a signal."""
    shares = [row["test"]["truly_upright"]["value"] for row in rows if "truly_upright" in row["test"]]
    return f", truly upright {100 * np.mean(shares):.1f}" if shares else ""


def _percent(value: float, low: float, high: float, runs: int) -> str:
    spread = "" if np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{spread} ({runs})"


def _points(value: float, low: float, high: float) -> str:
    spread = "" if np.isnan(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f}{spread}"


def _success(values: list[float]) -> str:
    """IQM with its interval and the number of runs; of less than ``FEWEST`` runs their mean and each of them."""
    if len(values) >= FEWEST:
        return _percent(*interval(iqm, values), len(values))
    return f"{100 * np.mean(values):.1f} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def _over_tasks(strata: list[list[float]]) -> str:
    """IQM of all runs, its interval and their number. Of a task with less than ``FEWEST`` runs nothing is to be cut off: then the mean of the tasks' means."""
    num = sum(map(len, strata))
    if min(map(len, strata)) >= FEWEST:
        return _percent(*interval(iqm, *strata), num)
    return _percent(float(np.mean([np.mean(stratum) for stratum in strata])), np.nan, np.nan, num)


def success_table(matrix: Matrix, name: str, variants: list[Variant], runs: Runs) -> Table:
    """A row a cell: success on the test seeds on each task, and over all by the seeds that every cell run on all of them has; environment steps of the phase
    to the target, and of all phases; minutes."""
    title = f"{name}: success in % on the test seeds: mean (of each run); from {FEWEST} runs on IQM [95 %] (runs)"
    found = Table(title=escape(title), title_justify="left", box=box.MARKDOWN)
    found.add_column("cell")
    for variant in variants:
        for column in (variant.name, f"steps to {matrix.target:.0%}", "steps in all", "minutes"):
            found.add_column(column)
    if len(variants) > 1:
        found.add_column("all tasks")
    everywhere = {cell for cell in matrix.tables[name] if all((variant.name, cell) in runs for variant in variants)}
    shared = {v.name: set.intersection(*({row["seed"] for row in runs[v.name, cell]} for cell in everywhere)) for v in variants} if everywhere else {}
    for cell in matrix.tables[name]:
        shown = []
        for variant in variants:
            rows = runs.get((variant.name, cell), [])
            if not rows:
                shown += ["-", "-", "-", "-"]
                continue
            needed = float(np.median([steps_to(row, matrix.target) for row in rows]))
            cap = max(row["curve"][-1]["env_steps"] for row in rows)
            steps = "" if matrix.cells[cell].phase != "interaction" else f"> {cap:,}" if np.isinf(needed) else f"{needed:,.0f}"
            minutes = np.median([row["seconds"]["fit"] + row["seconds"].get("rollouts", 0.0) for row in rows]) / 60
            every = np.median([row["env_steps"]["all"] for row in rows])
            shown += [_success(_test(rows)) + _upright(rows), steps, f"{every:,.0f}", f"{minutes:.1f}"]
        if len(variants) > 1:
            alike = cell in everywhere and all(shared.values())
            strata = [_test([row for row in runs[v.name, cell] if row["seed"] in shared[v.name]]) for v in variants] if alike else []
            shown.append(_over_tasks(strata) if alike else "-")
        found.add_row(cell, *shown)
    return found


def funnel_table(matrix: Matrix, name: str, variant: Variant, runs: Runs) -> Table:
    """P(stage done | the one before done) of the final policies, counts added up over runs, in %."""
    rows_of = {cell: runs[variant.name, cell] for cell in matrix.tables[name] if (variant.name, cell) in runs}
    stages = next((list(row["test"]["stage_funnel"]) for rows in rows_of.values() for row in rows), [])
    found = Table(title=f"{name}, {variant.name}: stage funnel, % of those that came so far", title_justify="left", box=box.MARKDOWN)
    for column in ("cell", *stages):
        found.add_column(column)
    for cell, rows in rows_of.items():
        found.add_row(cell, *(f"{100 * value:.1f}" for value in funnel(rows, stages)))
    return found


def funnel(rows: list[dict[str, Any]], stages: Sequence[str]) -> list[float]:
    """Share of each stage, its counts added up over the runs; nan where none came so far."""
    counts = [[(row["test"]["stage_funnel"][stage]["successes"], row["test"]["stage_funnel"][stage]["trials"]) for row in rows] for stage in stages]
    return [sum(s for s, _ in each) / total if (total := sum(t for _, t in each)) else float("nan") for each in counts]


def claims_table(matrix: Matrix, variants: list[Variant], runs: Runs) -> Table:
    """What the paper says is better, and by how many points it is here, on the tasks where both were run."""
    title = "the paper's signs: gain in points of success, mean over seeds [95 %: paired t over seeds, or over test episodes, whichever is wider] (seeds)"
    found = Table(title=escape(title), title_justify="left", box=box.MARKDOWN)
    for column in ("better", "worse", *(variant.name for variant in variants), "sign"):
        found.add_column(column)
    words = ["the other way", "no difference", "as the paper"]
    for better, worse in matrix.claims:
        gains = [gain(runs.get((variant.name, better), []), runs.get((variant.name, worse), [])) for variant in variants]
        shown = ["-" if each is None else f"{_points(*each[:3])} ({each[3]})" for each in gains]
        certain = [words[int(np.sign(value)) + 1] + ("" if low > 0 or high < 0 else ", not certain") for value, low, high, _ in filter(None, gains)]
        found.add_row(better, worse, *shown, "; ".join(certain))
    return found


def effects_table(matrix: Matrix, variants: list[Variant], runs: Runs) -> Table:
    """Points of success that each claim and each comparison gains, seed by seed, over all seeds and over all tasks: what `docs/method.md` speaks of."""
    title = "effects: the first less the second in points of success, of each seed [95 % over its test episodes] (seed); over all seeds, or runs, as above"
    found = Table(title=escape(title), title_justify="left", box=box.MARKDOWN)
    over_tasks = ["all tasks (runs)"] if len(variants) > 1 else []
    for column in ("first", "second", *(name for variant in variants for name in (variant.name, "all seeds")), *over_tasks):
        found.add_column(column)
    for first, second in (*matrix.claims, *matrix.comparisons):
        shown = []
        for variant in variants:
            ours, theirs = runs.get((variant.name, first), []), runs.get((variant.name, second), [])
            every = gain(ours, theirs)
            each = [(row["seed"], gain([row], theirs)) for row in ours]
            shown += [", ".join(f"{_points(*one[:3])} ({seed})" for seed, one in each if one) or "-", "-" if every is None else _points(*every[:3])]
        if over_tasks:
            sides = ([row for variant in variants for row in runs.get((variant.name, cell), [])] for cell in (first, second))
            every = gain(*sides)
            shown.append("-" if every is None else f"{_points(*every[:3])} ({every[3]})")
        if set(shown) != {"-"}:
            found.add_row(first, second, *shown)
    return found
