"""An evaluation as a table to read and as JSON to keep: what was measured, from which seeds, by which command, on which machine."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from stare_lit import __version__
from stare_lit.evaluation.evaluate import Evaluation
from stare_lit.evaluation.metrics import PairedGain, mean_or_nan

PACKAGES = ("torch", "lightning", "torchrl", "tensordict", "transformers", "mani_skill", "sapien", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of what a number depends on; packages that are not installed are left out."""
    versions = {"stare_lit": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """The machine, in words that carry over to another one; ``threads`` of a tensor operation, on which the last bits of a result depend, too."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus, "system": platform.platform()}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def command_line() -> list[str]:
    """The command that started this process, with its program shortened to its name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def console() -> Console:
    """For tables and paths: as wide as the terminal; wide enough for a table where the output goes to a file."""
    terminal = Console(soft_wrap=True, highlight=False)
    return terminal if terminal.is_terminal else Console(soft_wrap=True, highlight=False, width=160)


def summary_table(rows: Mapping[str, Evaluation], gains: Mapping[str, PairedGain] | None = None, *, title: str = "", rows_are: str = "policy") -> Table:
    """One row a policy (or what ``rows_are``), in order; ``gains`` by row name adds the paired gain over the row that it was computed against.

    Where a row was told another goal than its scenes' own, a column says how often it was reached; of the other rows the goal told is the own one.
    """
    table = Table(title=title or None, title_justify="left")
    upright = any(result.upright is not None for result in rows.values())
    told = any(result.told is not None for result in rows.values())
    more = [*(["truly upright [95 %]"] if upright else []), *(["told goal [95 %]"] if told else [])]
    for column in (rows_are, "success_once [95 %]", "success_at_end [95 %]", *more, "steps to success", *(["paired gain [95 %]"] if gains else [])):
        table.add_column(column)
    for name, result in rows.items():
        cells = [name, str(result.once), str(result.at_end), *([str(result.upright or "-")] if upright else [])]
        cells += [*([str(result.told or result.success)] if told else []), f"{mean_or_nan(result.time_to_success):.1f}"]
        table.add_row(*cells, *([str(gains.get(name, ""))] if gains else []))
    return table


def stage_table(result: Evaluation) -> Table:
    """The funnel: of the episodes that had come so far, how many completed the stage."""
    table = Table(title="stage funnel", title_justify="left")
    for column in ("stage", "done of all", "done, given the stage before"):
        table.add_column(column)
    for name in result.stage_names:
        table.add_row(name, str(result.reached[name]), str(result.funnel[name]))
    return table


def report(results: Mapping[str, Evaluation], gains: Mapping[str, PairedGain] | None = None, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to understand and repeat the numbers, as plain values."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "config": dict(config),
        "results": {
            name: {
                "success_once": _rate(result.once),
                "success_at_end": _rate(result.at_end),
                **{name: _rate(rate) for name, rate in result.further.items()},
                "stage_funnel": {stage: _rate(rate) for stage, rate in result.funnel.items()},
                "means": {key: value for key, value in result.metrics().items() if "/" not in key},
                "episodes": result.to_dict(),
            }
            for name, result in results.items()
        },
        "paired_gains": {name: vars(gain) for name, gain in (gains or {}).items()},
        "hardware": hardware(),
        "versions": package_versions(),
    }


def _rate(rate: Any) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "successes": rate.successes, "trials": rate.trials}


def write_json(path: Path | str, values: Mapping[str, Any]) -> Path:
    """Write whole or not at all (a temporary file, renamed); nan becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_plain(values), indent=1, allow_nan=False, default=str) + "\n")
    os.replace(temporary, path)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
