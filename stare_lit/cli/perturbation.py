"""Which perturbations `stare eval` is asked for: files of ``configs/perturbations/``, and which of them a task can be put under."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.signals import instructions_of

FOLDER = Path("configs/perturbations")
ALL = "all"


def read_perturbations(entries: str | Sequence[str]) -> dict[str, Perturbation]:
    """Perturbations by name, in order.

    Args:
        entries: ``all`` for every file of ``configs/perturbations``, or names of these, or paths of YAML files.

    Raises:
        ValueError: no such file, or one that does not hold a perturbation.
    """
    entries = [entries] if isinstance(entries, str) else list(entries)
    paths = sorted(FOLDER.glob("*.yaml")) if entries == [ALL] else [_path(entry) for entry in entries]
    if not paths:
        raise ValueError(f"perturbation={entries}: no files in {FOLDER}; run from the folder that holds configs/, or give paths")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"perturbation={entries}: their file names must differ")
    return {path.stem: _read(path) for path in paths}


def _path(entry: str) -> Path:
    path = Path(entry) if entry.endswith((".yaml", ".yml")) else FOLDER / f"{entry}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(other.stem for other in FOLDER.glob("*.yaml"))) or "none here: run from the folder that holds configs/"
        raise ValueError(f"perturbation={entry!r}: {path} is not a file; give a path, {ALL}, or one that ships ({names})")
    return path


def _read(path: Path) -> Perturbation:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Perturbation)
    try:
        return Perturbation(**vars(parser.parse_path(path)))
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"perturbation={str(path)!r}: {error}") from error


def split_by_fit(perturbations: Mapping[str, Perturbation], task: str, observation: str) -> tuple[dict[str, Perturbation], dict[str, str]]:
    """Those that ``task`` can be put under, and for the others the reason why not, both by name."""
    fitting, reasons = {}, {}
    for name, perturbation in perturbations.items():
        try:
            perturbation.check(task, instructions_of(task), observation=observation)
            fitting[name] = perturbation
        except ValueError as error:
            reasons[name] = str(error)
    return fitting, reasons
