"""Figures of the ablation matrix, and everything that is drawn of it in one go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plan import Matrix, Variant
from results import FEWEST, Runs, claims_table, effects_table, funnel, funnel_table, interval, iqm, read_results, success_table
from rich.console import Console
from rich.table import Table


def colours(matrix: Matrix, name: str) -> dict[str, Any]:
    """A colour for each cell of a table, the same in all its figures: the ten that are told apart best, where they are enough."""
    cells = matrix.tables[name]
    palette = colormaps["tab10" if len(cells) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return dict(zip(cells, palette, strict=False))


def plot_curves(axes: Axes, matrix: Matrix, name: str, variant: Variant, runs: Runs) -> None:
    """Success on the validation seeds over environment steps of the phase (optimizer steps where it takes none): IQM and 95 % band; below ``FEWEST`` runs
    their mean and range."""
    axis = "env_steps" if any(row["curve"][-1]["env_steps"] for _, rows in _rows(matrix, name, variant, runs) for row in rows) else "step"
    colour = colours(matrix, name)
    for cell, rows in _rows(matrix, name, variant, runs):
        curves = [([point[axis] for point in row["curve"]], [point["success"] for point in row["curve"]]) for row in rows]
        if axis == "env_steps" and matrix.cells[cell].phase != "interaction":
            axes.axhline(float(iqm(np.array([success[-1] for _, success in curves]))), label=f"{cell} ({len(rows)})", linestyle=":", color=colour[cell])
            continue
        grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 40)
        points = np.array([_band([float(np.interp(at, x, success)) for x, success in curves]) for at in grid])
        axes.plot(grid, points[:, 0], label=f"{cell} ({len(rows)})", color=colour[cell])
        axes.fill_between(grid, points[:, 1], points[:, 2], alpha=0.15, color=colour[cell], linewidth=0)
    axes.axhline(matrix.target, color="black", linewidth=0.5)
    axes.set(xlabel=axis.replace("_", " "), ylabel="success, validation seeds, greedy", title=f"{name}: {variant.name}")
    axes.set_ylim(top=1)  # from the lowest curve on: cells that stand on a good start lie close together


def _band(values: list[float]) -> tuple[float, float, float]:
    return interval(iqm, values) if len(values) >= FEWEST else (float(np.mean(values)), min(values), max(values))


def plot_funnel(axes: Axes, matrix: Matrix, name: str, variant: Variant, runs: Runs) -> None:
    """Bars of the stage funnel, a group a stage and a bar a cell."""
    found = list(_rows(matrix, name, variant, runs))
    stages = list(found[0][1][0]["test"]["stage_funnel"])
    width, colour = 0.8 / len(found), colours(matrix, name)
    for number, (cell, rows) in enumerate(found):
        axes.bar(np.arange(len(stages)) + (number - (len(found) - 1) / 2) * width, np.nan_to_num(funnel(rows, stages)), width, label=cell, color=colour[cell])
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel="done, given the stage before", ylim=(0, 1), title=f"{name}: {variant.name}, test seeds")


def _rows(matrix: Matrix, name: str, variant: Variant, runs: Runs) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    return ((cell, runs[variant.name, cell]) for cell in matrix.tables[name] if (variant.name, cell) in runs)


def draw(matrix: Matrix, results: Path, out: Console) -> None:
    """Every table to ``out`` and to ``tables.md``, every figure as PNG, all in ``results``."""
    runs = read_results(results)
    if not runs:
        out.print(f"no finished cell in {results}")
        return
    variants = [variant for variant in matrix.variants if any(name == variant.name for name, _ in runs)]
    tables: list[Table] = []
    for name, cells in matrix.tables.items():
        present = [variant for variant in variants if any((variant.name, cell) in runs for cell in cells if matrix.cells[cell].after is not None)]
        if not present:
            continue
        tables.append(success_table(matrix, name, present, runs))
        for variant in present:
            tables.append(funnel_table(matrix, name, variant, runs))
            for kind, plot in (("curves", plot_curves), ("funnel", plot_funnel)):
                figure = Figure(figsize=(9, 5), layout="constrained")
                plot(figure.subplots(), matrix, name, variant, runs)
                figure.legend(loc="outside right upper", fontsize="small")  # beside what it explains, not on it
                figure.savefig(results / f"{kind}-{name}-{variant.name}.png", dpi=100)
    tables += [claims_table(matrix, variants, runs), effects_table(matrix, variants, runs)]
    out.print(*tables)
    with (results / "tables.md").open("w") as file:
        Console(file=file, width=1000).print(*tables)
    commits = {row["commit"] for rows in runs.values() for row in rows}
    if len(commits) > 1:
        out.print(f"these cells were run at {len(commits)} commits: {', '.join(sorted(map(str, commits)))}")
    out.print(f"tables and figures in {results}")
