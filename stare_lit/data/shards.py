"""One shard of trajectories on disk: memory-mapped tensors that are written whole, and checked before they are mapped.

A shard is a folder with ``data/`` and ``episodes/`` (memory-mapped TensorDicts) and ``shard.json``: numbers of rows and episodes, a free ``info``,
and the SHA-256 of every file and of itself. Tensors only: a pickle, or a file that ``shard.json`` does not name, is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_leaf_nontensor
from torch import Tensor

Layout = dict[str, Any]
"""{key, nested ones joined by "/": [dtype, shape without the rows]}."""


def write_shard(path: Path, data: TensorDictBase, episodes: TensorDictBase, info: Mapping[str, Any]) -> None:
    """Writes beside ``path`` and renames: afterwards the shard is complete or not there."""
    temporary = path.parent / f".{path.name}"
    _check_room(path.parent, data, episodes)
    temporary.mkdir()
    for part, tensors in (("data", data), ("episodes", episodes)):
        if tensors.shape[0]:
            tensors.detach().cpu().contiguous().memmap(str(temporary / part), copy_existing=True)
    files = {str(file.relative_to(temporary)): _checksum(file) for file in sorted(temporary.rglob("*")) if file.is_file()}
    shard = {"num_rows": data.shape[0], "num_episodes": episodes.shape[0], "info": dict(info), "sha256": files}
    (temporary / "shard.json").write_text(sealed(shard))
    os.rename(temporary, path)


def load_shard(path: Path, layout: Layout | None, *, verify: bool) -> tuple[TensorDict | None, TensorDict | None, dict[str, Any]]:
    """Data [rows] and episode table [E] (None where empty), and the info.

    Args:
        layout: what the data must look like.
        verify: also read every tensor and compare its SHA-256.

    Raises:
        ValueError: files that do not belong, of a wrong size or content, or another layout.
    """
    shard = unsealed(path / "shard.json")
    if missing := {"num_rows", "num_episodes", "info", "sha256"} - shard.keys():
        raise ValueError(f"{path / 'shard.json'}: lacks {', '.join(sorted(missing))}; delete the folder {path} and make the trajectories again")
    named = set(shard["sha256"])
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"shard.json"}
    strange = {name for name in found | named if not (name.endswith(".memmap") or name.rsplit("/", 1)[-1] == "meta.json")}
    if strange or found != named:
        raise ValueError(
            f"{path}: only the tensors that its shard.json names may be there, but these differ: {', '.join(sorted(strange or found ^ named))}; "
            "delete the folder and make the trajectories again"
        )
    compared = {name: digest for name, digest in shard["sha256"].items() if verify or name.endswith(".json")}
    if damaged := [name for name, digest in compared.items() if _checksum(path / name) != digest]:
        raise ValueError(f"{path}: checksum does not match for {', '.join(damaged)}: the files are damaged; make the trajectories again")
    data = _load_tensors(path / "data", shard["num_rows"])
    if data is not None and layout_of(data) != layout:
        raise ValueError(f"{path}: not the keys, dtypes and shapes that metadata.json names: {difference(layout_of(data), layout or {})}")
    return data, _load_tensors(path / "episodes", shard["num_episodes"]), shard["info"]


def sealed(content: Mapping[str, Any]) -> str:
    """``content`` as JSON with a digest of itself."""
    return json.dumps({**content, "digest": _digest(content)}, indent=1)


def unsealed(path: Path) -> dict[str, Any]:
    """What `sealed` was given; ValueError for a file that is damaged. (One without a digest is from before there was any.)"""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged; delete the folder and make the trajectories again"
        ) from error
    if digest not in (None, _digest(content)):
        raise ValueError(f"{path}: its content does not fit its digest: it is damaged; delete the folder and make the trajectories again")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_room(folder: Path, *parts: TensorDictBase) -> None:
    """OSError where the tensors do not fit: a write to mapped memory that finds no room would kill the process without a word."""
    needed, free = sum(part.bytes() for part in parts), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder}: no room for {needed} bytes of trajectories ({free} are free); make room, then run the same command again")


def layout_of(data: TensorDictBase) -> Layout:
    """The layout of ``data`` [rows]; ValueError for an entry that is no tensor."""
    layout = {}
    for name, value in data.items(include_nested=True, leaves_only=True, is_leaf=is_leaf_nontensor):
        joined = name if isinstance(name, str) else "/".join(name)
        if not isinstance(value, Tensor):
            raise ValueError(f"data[{joined!r}] is {type(value).__name__}, but only tensors are stored: leave it out, or encode it as numbers")
        layout[joined] = [str(value.dtype).removeprefix("torch."), list(value.shape[1:])]
    return dict(sorted(layout.items()))


def difference(have: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    """'image_size is 64, asked for 96, ...' for every entry that differs; '' where none does."""
    differing = [name for name in dict.fromkeys([*have, *want]) if have.get(name) != want.get(name)]
    return ", ".join(f"{name} is {have.get(name, 'absent')!r}, asked for {want.get(name, 'absent')!r}" for name in differing)


def _load_tensors(path: Path, size: int) -> TensorDict | None:
    """A memory-mapped TensorDict [size]; file sizes are checked first, for mapping a short file would lengthen it."""
    if size == 0:
        return None
    for meta in path.rglob("meta.json"):
        for name, entry in json.loads(meta.read_text()).items():
            if isinstance(entry, dict) and "shape" in entry:
                expected = torch.Size(entry["shape"]).numel() * getattr(torch, entry["dtype"].removeprefix("torch.")).itemsize
                file = meta.parent / f"{name}.memmap"
                if expected and (not file.exists() or file.stat().st_size != expected):
                    raise ValueError(f"{file}: {expected} bytes expected; the file is damaged, make the trajectories again")
    tensors = TensorDict.load_memmap(path, allow_pickle=False)
    if tensors.batch_size != torch.Size([size]):
        raise ValueError(f"{path}: batch size {tuple(tensors.batch_size)}, but shard.json says {size}; make the trajectories again")
    return tensors


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
