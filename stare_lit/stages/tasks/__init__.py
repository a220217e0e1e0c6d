"""One ``StageSpec`` a task: named constants with units in ``tasks/<task>.py``. Numbers are the environments' own success tests (ours where not)."""

import pkgutil
import re
from importlib import import_module

from stare_lit.stages.spec import StageSpec


def known_tasks() -> tuple[str, ...]:
    """Ids of the tasks that have a ``StageSpec``, sorted."""
    return tuple(sorted(import_module(f"{__name__}.{module.name}").SPEC.name for module in pkgutil.iter_modules(__path__)))


def get_spec(task: str) -> StageSpec:
    """The ``StageSpec`` of an environment id: ``PushCube-v1`` is ``tasks/push_cube.py``. ``ValueError`` lists the known tasks."""
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"-v\d+$", "", task)).lower()
    if module in {info.name for info in pkgutil.iter_modules(__path__)}:
        spec = import_module(f"{__name__}.{module}").SPEC
        if spec.name == task:
            return spec
    raise ValueError(f"task: {task!r} has no stages; choose from {', '.join(known_tasks())} or add stages/tasks/<task>.py")
