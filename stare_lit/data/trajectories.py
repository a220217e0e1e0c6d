"""The trajectory file format: episodes of decisions as memory-mapped tensors, with metadata that says what they are.

A folder holds::

    metadata.json        schema version, what the episodes are (`TrajectoryMetadata`), layout (dtype and shape of every key), package versions
    .lock                held by the one writer
    shards/000000/       see ``stare_lit.data.shards``
        data/            TensorDict [rows]: row = one decision, time flattened, the keys of ``stare_lit.keys`` that were given
        episodes/        TensorDict [episodes]: start, length, seed, success, instruction_id, and extras of the writer

A killed run leaves complete shards and nothing else. Text is not stored: ``instruction_id`` indexes the table of instructions in the metadata.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from stare_lit import keys
from stare_lit.data.lock import lock_folder
from stare_lit.data.metadata import TrajectoryMetadata, check_layout, read_metadata, write_metadata
from stare_lit.data.shards import difference, layout_of, load_shard, write_shard

__all__ = ["Trajectories", "TrajectoryMetadata", "TrajectoryWriter"]


class TrajectoryWriter:
    """Appends whole shards to a folder; one writer at a time.

    Args:
        folder: made where absent; an existing one must hold trajectories with equal ``metadata``.

    Raises:
        ValueError: the folder holds other trajectories, or another process is writing to it.
    """

    def __init__(self, folder: str | Path, metadata: TrajectoryMetadata) -> None:
        self.folder, self.metadata = Path(folder), metadata
        self._lock = lock_folder(self.folder, argument="folder")
        try:
            (self.folder / "shards").mkdir(exist_ok=True)
            for leftover in (self.folder / "shards").glob(".*"):
                shutil.rmtree(leftover)  # of a killed writer
            if (self.folder / "metadata.json").exists():
                read_metadata(self.folder, metadata.flat())
            else:
                write_metadata(self.folder, metadata, layout=None)
            self._stored = Trajectories(self.folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TrajectoryWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets the next writer in."""
        self._lock.close()

    @property
    def stored(self) -> "Trajectories":
        """What the folder holds by now."""
        return self._stored

    def append(self, data: TensorDictBase, episodes: TensorDictBase, *, info: Mapping[str, Any] | None = None) -> None:
        """One shard, complete or not at all.

        Args:
            data: [rows] tensors, the episodes one after the other (may have no rows).
            episodes: [E] with length int64, seed int64, success bool, instruction_id int64, and any extra tensors.
            info: JSON values to keep with the shard.

        Raises:
            ValueError: lengths that do not add up, entries that are no tensors, or a layout other than the folder's.
        """
        episodes = episodes.copy().set("start", episodes["length"].cumsum(0) - episodes["length"])
        if int(episodes["length"].sum()) != data.shape[0]:
            raise ValueError(f"episodes['length'] sums to {int(episodes['length'].sum())}, but data has {data.shape[0]} rows")
        if data.shape[0]:
            layout = layout_of(data)
            check_layout(layout, self.metadata)
            if not len(self._stored):
                write_metadata(self.folder, self.metadata, layout)
                self._stored.layout = layout
            elif layout != self._stored.layout:
                raise ValueError(f"data: keys, dtypes and shapes differ from the folder {self.folder}: {difference(self._stored.layout, layout)}; "
                                 "append the same keys, or choose another folder")  # fmt: skip
        path = self.folder / "shards" / f"{len(self._stored.infos):06d}"
        write_shard(path, data, episodes, info or {})
        self._stored.attach(path)

    def append_episodes(
        self, tensordict: TensorDictBase, mask: Tensor, *, extra: Mapping[str, Tensor] | None = None, info: Mapping[str, Any] | None = None
    ) -> None:
        """One shard from padded episodes, as ``envs.rollout.run_episodes`` returns them.

        Args:
            tensordict: [N, T]; reads ``episode_seed``, ``instruction_id`` (0 where absent) and ``next/success`` (of the last decision) for the episode table.
            mask: bool [N, T], True = a real decision; the real ones come first.
            extra: further columns of the episode table, [N, ...] each.
        """
        mask = mask.bool()
        length = mask.sum(1)
        if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < length[:, None]) or not bool((length > 0).all()):
            raise ValueError("mask: every episode needs at least one real decision (True), and the padding must come last")
        # the last decision's: it reached success where that ends an episode, and is what counts where the benchmark judges at the end
        success = tensordict["next", keys.SUCCESS].reshape(mask.shape).gather(1, length[:, None] - 1).squeeze(1)
        instruction = tensordict.get(keys.INSTRUCTION_ID, None)
        table = {
            "length": length,
            "seed": tensordict[keys.EPISODE_SEED][:, 0],
            "success": success,
            "instruction_id": torch.zeros_like(length) if instruction is None else instruction[:, 0],
        }
        flat = tensordict.exclude("mask")[mask]
        self.append(flat, TensorDict({**table, **(extra or {})}, batch_size=[mask.shape[0]]), info=info)


class Trajectories:
    """Reads a folder of trajectories: lazily, as if all shards were one.

    Args:
        folder: what a `TrajectoryWriter` wrote.
        verify: read every file and compare its SHA-256; sizes, names and layout are always checked.
        expected: metadata or config values that the folder must have, ``image_size=64``.

    Attributes:
        metadata: `TrajectoryMetadata`.
        layout: {"observation/image": ["uint8", [3, 64, 64]], ...}, None while there are no rows.
        episodes: TensorDict [E] in the order of writing: start (row), length, seed, success, instruction_id, extras.
        infos: the ``info`` of each shard.

    Raises:
        FileNotFoundError: there are no trajectories.
        ValueError: other trajectories than expected, a damaged folder, or files that do not belong.
    """

    def __init__(self, folder: str | Path, *, verify: bool = False, **expected: Any) -> None:
        self.folder = Path(folder)
        self.metadata, self.layout = read_metadata(self.folder, expected)
        self.infos: list[dict[str, Any]] = []
        self.episodes = _empty_table()
        self._data: list[TensorDict] = []
        self._ends = torch.zeros(0, dtype=torch.int64)
        for path in sorted((self.folder / "shards").glob("[0-9]*")):
            self.attach(path, verify=verify)

    def attach(self, shard: Path, *, verify: bool = False) -> None:
        """Takes in one more shard, after all checks."""
        data, table, info = load_shard(shard, self.layout, verify=verify)
        self.infos.append(info)
        if table is not None:
            table = table.clone().set("start", len(self) + table["start"])
            self.episodes = torch.cat([self.episodes, table], 0) if self.num_episodes else table
        if data is not None:
            self._data.append(data)
            self._ends = torch.cat([self._ends, torch.tensor([len(self) + data.shape[0]])])

    def __len__(self) -> int:
        """Number of rows (decisions)."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_episodes(self) -> int:
        return self.episodes.shape[0]

    def select(self, *, success: bool | None = None, limit: int | None = None) -> Tensor:
        """Indices int64 of the episodes that (do not) succeed, in the order of writing, at most ``limit``."""
        chosen = torch.arange(self.num_episodes)
        if success is not None:
            chosen = chosen[self.episodes["success"] == success]
        return chosen[:limit]

    def row_index(self, episodes: Tensor) -> Tensor:
        """Rows int64 of the given episodes, one episode after the other."""
        table = self.episodes[episodes]
        offsets = torch.arange(int(table["length"].sum())) - (table["length"].cumsum(0) - table["length"]).repeat_interleave(table["length"])
        return table["start"].repeat_interleave(table["length"]) + offsets

    def rows(self, index: Tensor, names: Sequence[NestedKey] | None = None) -> TensorDict:
        """A copy of the rows ``index`` (int64 [M]) in that order, with all keys or those in ``names``."""
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < len(self)):
            raise ValueError(f"index: rows {int(index.min())}..{int(index.max())} asked for, but {self.folder} has 0..{len(self) - 1}")
        if not self._data:
            raise ValueError(f"folder={str(self.folder)!r} holds no rows: there is nothing to read yet")
        shard = torch.bucketize(index, self._ends, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends[:-1]])
        parts, order = [], []
        for number in shard.unique().tolist() or [0]:
            where = (shard == number).nonzero().squeeze(-1)
            data = self._data[number] if names is None else self._data[number].select(*names)
            parts.append(TensorDict({name: value[index[where] - starts[number]] for name, value in data.items(True, True)}, [len(where)]))
            order.append(where)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 0)[torch.cat(order).argsort()]

    def padded(self, episodes: Tensor, names: Sequence[NestedKey] | None = None) -> tuple[TensorDict, Tensor]:
        """The inverse of ``append_episodes``: ([N, T] with zeros as padding, mask bool [N, T])."""
        length = self.episodes["length"][episodes]
        mask = torch.arange(int(length.max())) < length[:, None]
        flat = self.rows(self.row_index(episodes), names)
        padded = flat.new_zeros(mask.shape)
        padded[mask] = flat
        return padded, mask


def _empty_table() -> TensorDict:
    """An episode table without episodes."""
    integers = {name: torch.zeros(0, dtype=torch.int64) for name in ("start", "length", "seed", "instruction_id")}
    return TensorDict({**integers, "success": torch.zeros(0, dtype=torch.bool)}, batch_size=[0])
