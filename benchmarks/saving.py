"""How every benchmark stores what it measured."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stare_lit.evaluation.report import console, hardware, package_versions, write_json


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings, the hardware and the versions. Not recorded: where a benchmark writes."""
    config = {name: value for name, value in vars(arguments).items() if name != "output"}
    return {"config": config, "hardware": hardware(), "versions": package_versions()}


def save(output: Path | str, arguments: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write ``content`` and what it is ``about``, whole or not at all, and say where."""
    console().print(f"written to {write_json(output, {**about(arguments), **content})}")
