"""What a folder of trajectories is: ``metadata.json``, and the checks against it."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stare_lit
from stare_lit import keys
from stare_lit.data.shards import Layout, difference, sealed, unsealed

SCHEMA_VERSION = 1
VERSIONED_PACKAGES = ("torch", "torchrl", "tensordict", "mani_skill", "sapien", "numpy")


@dataclass(frozen=True)
class TrajectoryMetadata:
    """What a folder of trajectories is; two folders with unequal metadata do not mix.

    Args:
        task: environment id, "PushCube-v1".
        action_dim: A.
        chunk_size: H, steps that one decision (row) commands.
        control_mode: the action space, "pd_ee_delta_pose": A numbers in [-1, 1].
        image_size: pixels of the square images, 0 where there are none.
        instructions: table that ``instruction_id`` indexes.
        kind: "demonstrations" or "rollouts".
        config: everything else that decides what the episodes contain; JSON values.
    """

    task: str
    action_dim: int
    chunk_size: int
    control_mode: str
    image_size: int
    instructions: tuple[str, ...]
    kind: str = "demonstrations"
    config: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """All fields as JSON values, ``config`` spread out."""
        values = json.loads(json.dumps(asdict(self)))
        return {**{name: value for name, value in values.items() if name != "config"}, **values["config"]}


def read_metadata(folder: Path, expected: Mapping[str, Any]) -> tuple[TrajectoryMetadata, Layout | None]:
    """Metadata and layout of ``folder``; refuses one that is not ``expected``."""
    path = folder / "metadata.json"
    if not path.exists():
        raise FileNotFoundError(f"folder={str(folder)!r} holds no trajectories (no metadata.json); make them with `stare demos` or `stare rollouts`")
    content = unsealed(path)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema version {content['schema_version']}, this package reads {SCHEMA_VERSION}; make the trajectories again")
        values = {item.name: content[item.name] for item in fields(TrajectoryMetadata)}
        metadata = TrajectoryMetadata(**{**values, "instructions": tuple(values["instructions"]), "config": dict(values["config"])})
        layout = content["layout"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the metadata of trajectories ({error!r}); choose another folder") from error
    have, want = {"cameras": [], "gripper_noise": 0.0, "arm_noise": 0.0, "disguised": 0.0, **metadata.flat()}, json.loads(json.dumps(dict(expected)))
    if differing := difference(have, {**have, **want}):
        raise ValueError(f"folder={str(folder)!r} holds other trajectories: {differing}; choose another folder, delete this one, or ask for what it holds")
    return metadata, layout


def write_metadata(folder: Path, metadata: TrajectoryMetadata, layout: Layout | None) -> None:
    """Writes ``metadata.json``, complete or not at all; ``layout`` is None until the first rows are there."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(metadata), "layout": layout, "versions": package_versions()}
    temporary = folder / ".metadata.json"
    temporary.write_text(sealed(json.loads(json.dumps(content))))
    os.replace(temporary, folder / "metadata.json")


def check_layout(layout: Layout, metadata: TrajectoryMetadata) -> None:
    """Images and actions must be what the metadata promises."""
    size = metadata.image_size
    for name, (dtype, shape) in layout.items():
        expected = None
        if name.removeprefix("next/").startswith("observation/image"):
            expected = ["uint8", [3, size, size]]
        elif name == keys.ACTION:
            expected = ["float32", [metadata.action_dim]]
        elif name == "/".join(keys.ACTION_CHUNK):
            expected = ["float32", [metadata.chunk_size, metadata.action_dim]]
        if expected is not None and [dtype, shape] != expected:
            raise ValueError(f"data[{name!r}] is {dtype} {shape}, but the metadata (image_size={size}, action_dim={metadata.action_dim}, "
                             f"chunk_size={metadata.chunk_size}) ask for {expected[0]} {expected[1]}")  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide what a trajectory holds."""
    versions = {"stare_lit": stare_lit.__version__}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions
