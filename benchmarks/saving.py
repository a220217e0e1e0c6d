"""How every benchmark stores what it measured."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stare_lit.evaluation.report import console, hardware, package_versions, write_json


def save(output: Path | str, arguments: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write ``content`` with the settings, the hardware and the versions, whole or not at all, and say where. Not recorded: where it was written."""
    config = {name: value for name, value in vars(arguments).items() if name != "output"}
    console().print(f"written to {write_json(output, {'config': config, **content, 'hardware': hardware(), 'versions': package_versions()})}")
