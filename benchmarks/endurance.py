"""Does a long run slow down or grow? StA-PPO for half an hour: environment steps per second and resident memory over time.

Run alone on the machine: python benchmarks/endurance.py [--minutes 30] [--config configs/sta_ppo.yaml]

Runs `stare fit` without its evaluations and with a learning rate at which the policy stays as it is: one that learns has shorter episodes, so more resets in
a round. Reads the memory of its whole process tree from /proc (proportional set size: shared pages count once) every few seconds and the seconds of each
round from its log, and fits a line through the seconds and through the least memory of each round (between sampling and learning it goes up and down); the
first fifth, in which caches fill, is left out. A leak is a slope whose interval excludes zero and that would matter: more than one per cent of the level in
an hour.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from saving import save
from scipy.stats import linregress, t

from stare_lit.evaluation.report import console

RESULTS = Path(__file__).parent / "results" / "endurance.json"
SETTLED = 0.2  # share of the run that is left out of the fits


def tree(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def memory(pid: int) -> float:
    """MiB of ``pid`` and its descendants, pages that they share counted once."""
    total = 0
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def trend(hours: list[float], values: list[float]) -> dict[str, float]:
    """Median level and slope an hour (with its 95 % interval) of the settled part."""
    settled = [(x, y) for x, y in zip(hours, values, strict=True) if x >= SETTLED * hours[-1]]
    fit = linregress(*zip(*settled, strict=True))
    half = t.ppf(0.975, len(settled) - 2) * fit.stderr
    level = statistics.median(y for _, y in settled)
    return {"level": level, "slope_per_hour": fit.slope, "low": fit.slope - half, "high": fit.slope + half, "points": len(settled)}


def least(samples: list[tuple[float, float]], ends: list[float]) -> tuple[list[float], list[float]]:
    """Of each round but the first, and the last, in which processes end already: the hours from the first one's end to its own, and its least MiB;
    ``ends`` are in the seconds of the samples.
    """  # fmt: skip
    spans = [[size for at, size in samples if begin <= at < end] for begin, end in pairwise(ends[:-1])]
    found = [((end - ends[0]) / 3600, min(sizes)) for sizes, end in zip(spans, ends[1:-1], strict=True) if sizes]
    return [at for at, _ in found], [size for _, size in found]


def analyse(samples: list[tuple[float, float]], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The trends, and the fastest round of each sixth of the run: where a machine has slower minutes, that one says whether the run itself slows down."""
    seconds = [sum(row[f"time/{part}"] for part in ("simulate", "policy", "update")) for row in rounds]
    ends = list(accumulate(seconds))
    hours = [end / 3600 for end in ends]
    start = samples[-1][0] - ends[-1]  # of the first round
    fits = {
        "least memory of a round, MiB": trend(*least(samples, [start + end for end in ends])),
        "seconds of a round": trend(hours, seconds),
        "environment steps/s": trend(hours, [row["time/env_steps_per_second"] for row in rounds]),
    }
    return {"fits": fits, "fastest_round_of_each_sixth": [float(part.min()) for part in np.array_split(seconds, 6)]}


def observe(config: str, minutes: float, every: float, extra: list[str]) -> tuple[list[tuple[float, float]], list[dict[str, float]]]:
    """(seconds, MiB) samples of a run, and the rows of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stare_lit", "fit", "--config", config, "--run_dir", f"{folder}/run", "--trainer.max_epochs=-1"]
        command += ["--model.learning_rate=1e-12", "--trainer.max_time", time.strftime("00:%H:%M:%S", time.gmtime(60 * minutes))]
        command += ['--trainer.callbacks=[{"class_path": "stare_lit.callbacks.NonFiniteGuard"}]']
        run = subprocess.Popen([*command, *extra], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"WANDB_MODE": "disabled"})
        samples, started = [], time.perf_counter()
        while run.poll() is None:
            samples.append((time.perf_counter() - started, memory(run.pid)))
            time.sleep(every)
        if run.returncode:
            raise RuntimeError(f"`{' '.join(command)}` ended with {run.returncode}:\n{run.stderr.read().decode()[-2000:]}")
        rows = [row for path in Path(folder).rglob("metrics.csv") for row in csv.DictReader(path.open()) if row.get("time/update")]
    names = ("time/simulate", "time/policy", "time/update", "time/env_steps_per_second")
    return samples, [{name: float(row[name]) for name in names} for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sta_ppo.yaml")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two readings of the memory")
    parser.add_argument("--extra", nargs="*", default=[], help="further settings of `stare fit`")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    samples, rounds = observe(arguments.config, arguments.minutes, arguments.every, arguments.extra)
    found = analyse(samples, rounds)
    table = Table(
        "what", "level", "change an hour", "95 %", "share of the level", title=f"{arguments.config}, {arguments.minutes:g} minutes, {len(rounds)} rounds"
    )
    for name, fit in found["fits"].items():
        share = fit["slope_per_hour"] / fit["level"]
        table.add_row(name, f"{fit['level']:.1f}", f"{fit['slope_per_hour']:+.1f}", f"{fit['low']:+.1f} .. {fit['high']:+.1f}", f"{share:+.1%}")
    console().print(table, "fastest round of each sixth, s: " + ", ".join(f"{fastest:.1f}" for fastest in found["fastest_round_of_each_sixth"]))
    save(arguments.output, arguments, {**found, "memory": samples[:: max(1, len(samples) // 200)], "rounds": rounds})


if __name__ == "__main__":
    main()
