"""Folders of safetensors as the Hub has them: one ``model.safetensors``, or numbered shards with an index. Nothing is ever unpickled."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9


class Shards:
    """The tensors of a folder, read one by one.

    Raises:
        ValueError: no safetensors there, a shard is missing or damaged, or the index does not fit the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = self._files()
        self._open: dict[str, Any] = {}
        self._place: dict[str, str] = {}
        for name in files:
            if not (folder / name).is_file():
                raise ValueError(f"path={str(folder)!r}: {INDEX} names {name}, which is missing; copy or download the whole folder again")
            try:
                self._open[name] = safe_open(folder / name, "pt")
                self._place |= dict.fromkeys(self._open[name].keys(), name)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"path={str(folder)!r}: {name} is no whole safetensors file ({error}); copy or download it again") from error

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._place)

    def get(self, name: str) -> Tensor:
        """The tensor ``name``."""
        return self._open[self._place[name]].get_tensor(name)

    def shape(self, name: str) -> list[int]:
        """Its shape, without reading it."""
        return list(self._open[self._place[name]].get_slice(name).get_shape())

    def _files(self) -> list[str]:
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        index = self.folder / INDEX
        if not index.is_file():
            raise ValueError(f"path={str(self.folder)!r}: holds neither {SINGLE} nor {INDEX}; pickled weights (.bin, .pt) are never read")
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path={str(self.folder)!r}: {INDEX} is damaged ({error!r}); copy or download it again") from error
        if foreign := [name for name in files if Path(str(name)).name != name or not name.endswith(".safetensors")]:
            raise ValueError(f"path={str(self.folder)!r}: {INDEX} names {foreign[:3]}, which are no safetensors files of this folder")
        return files


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write named tensors into ``folder``, at most ``max_bytes`` a file (but for a tensor that is larger alone); several files get an index."""
    parts: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        save_file(pending, folder / f".part-{len(parts)}", metadata={"format": "pt"})
        parts.append({name: tensor.nbytes for name, tensor in pending.items()})
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(held.nbytes for held in pending.values()) + tensor.nbytes > max_bytes:
            flush()
        pending[name] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
    flush()
    names = [SINGLE] if len(parts) == 1 else [f"model-{part + 1:05}-of-{len(parts):05}.safetensors" for part in range(len(parts))]
    for part, name in enumerate(names):
        os.replace(folder / f".part-{part}", folder / name)
    if len(parts) > 1:
        place = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": sum(sum(part.values()) for part in parts)}, "weight_map": dict(sorted(place.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
