"""Batches from tensors in memory: one gather a batch, an order that a checkpoint can go on from, chunks of actions, random shifts."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader
from torchrl.envs.transforms import ActionChunkTransform

from stare_lit import keys
from stare_lit.experts.noise import START

IMAGE_SHIFT = "image_shift"
"""Key of the shift drawn for each sample, int64 [B, 2], rows and columns, 0..2*pad."""


class Rows(Protocol):
    """What batches are gathered from: a TensorDict [M], or anything else that makes one batch from int64 [B] row numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> TensorDict: ...


class BatchLoader:
    """Batches of rows in a seeded order; an iterable that Lightning takes for a DataLoader.

    The order of epoch e is a permutation from (seed, e); ``state_dict`` is (epoch, batches served), so that a run that is resumed in the middle
    of an epoch sees exactly the batches it would have seen. Lightning saves and restores the state by itself, and says the epoch (``set_epoch``).

    Args:
        data: the rows.
        batch_size: rows in a batch of this rank.
        shuffle: a new permutation each epoch; otherwise in order, with all rows.
        drop_last: with ``shuffle``, whole batches only.
        groups: int64 [rows]; with ``shuffle``, whole groups are shuffled: the rows of one stay together.
        max_shift: draw an `IMAGE_SHIFT` of up to so many pixels each way for each sample, from (seed, epoch, batch).
        rank, world_size: this rank takes every ``world_size``-th row of the order.
        num_workers: processes that read batches ahead; 0 reads here.

    Raises:
        ValueError: fewer rows than one batch needs.
    """

    def __init__(
        self, data: Rows, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = True, max_shift: int = 0,
        groups: Tensor | None = None, rank: int = 0, world_size: int = 1, num_workers: int = 0,
    ) -> None:  # fmt: skip
        drop_last = drop_last and shuffle
        if batch_size < 1 or (drop_last and len(data) // world_size < batch_size):
            raise ValueError(f"batch_size={batch_size}: must be 1 to {len(data) // world_size}, the rows there are for each of {world_size} process(es); "
                             "lower it, or use more episodes")  # fmt: skip
        self._data, self._batch_size, self._seed, self._shuffle, self._max_shift = data, batch_size, seed, shuffle, max_shift
        self._groups = None if groups is None else groups.unique(return_inverse=True)[1]
        self._drop_last, self._rank, self._world_size, self._num_workers = drop_last, rank, world_size, num_workers
        self.epoch, self.position = 0, 0

    batch_sampler = None
    """Lightning asks where there is a ``sampler``."""

    @property
    def sampler(self) -> "BatchLoader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of ``epoch``, unless it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        rows = len(self._data) // self._world_size
        return rows // self._batch_size if self._drop_last else -(-rows // self._batch_size)

    def __iter__(self) -> Iterator[TensorDict]:
        """The rest of the present epoch, or the next one where that has been served to its end; without ``shuffle`` always all batches."""
        if not self._shuffle:
            self.position = 0
        elif self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        for batch in self._read(list(self._order().split(self._batch_size))[self.position : len(self)]):
            if self._max_shift:
                batch.set(IMAGE_SHIFT, torch.randint(0, 2 * self._max_shift + 1, (len(batch), 2), generator=self._generator(1, self.position, self._rank)))
            self.position += 1
            yield batch

    def _read(self, indices: list[Tensor]) -> Iterator[TensorDict]:
        if not self._num_workers:
            return map(self._data.__getitem__, indices)
        # its own generator: a DataLoader otherwise draws from the global one
        generator = torch.Generator().manual_seed(self._seed)
        whole = {"batch_size": None, "collate_fn": _as_it_is, "generator": generator}
        return iter(DataLoader(self._data, sampler=indices, num_workers=self._num_workers, **whole))

    def _order(self) -> Tensor:
        rows = len(self._data)
        order = torch.arange(rows)
        if self._shuffle:
            shuffled = torch.randperm(rows, generator=self._generator(0))
            order = shuffled if self._groups is None else shuffled[self._groups].argsort(stable=True)  # a place drawn for each group
        return order[: rows - rows % self._world_size][self._rank :: self._world_size]

    def _generator(self, *stream: int) -> torch.Generator:
        """Random numbers of their own for each (seed, epoch, stream)."""
        words = np.random.SeedSequence([self._seed, self.epoch, *stream]).generate_state(2)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def state_dict(self) -> dict[str, int]:
        """Where the order stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self.epoch, self.position = state["epoch"], state["position"]


def _as_it_is(batch: TensorDict) -> TensorDict:
    return batch


def action_chunks(actions: Tensor, lengths: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Targets of chunk prediction: at every row the actions of this and the next H - 1 rows of its episode.

    Args:
        actions: float32 [M, A], episodes one after the other.
        lengths: int64 [E], rows of each episode; sum M.

    Returns:
        chunk float32 [M, H, A], which repeats the last action of the episode beyond its end, and ``action_is_pad`` bool [M, H], True there.
    """
    done = torch.zeros(len(actions), 1, dtype=torch.bool)
    done[lengths.cumsum(0) - 1] = True
    tensordict = ActionChunkTransform(chunk_size)(TensorDict({keys.ACTION: actions, "next": {"done": done}}))
    return tensordict[keys.ACTION_CHUNK].contiguous(), tensordict[keys.ACTION_IS_PAD].contiguous()


def start_repeated(lengths: Tensor, repeats: int) -> Tensor:
    """Row numbers int64 [M'] of episodes of ``lengths`` [E] rows, one after the other; each of an episode's first `START` rows ``repeats`` times."""
    early = torch.cat([torch.arange(length) for length in lengths.tolist()]) < START
    return torch.arange(len(early)).repeat_interleave(1 + (repeats - 1) * early)


def random_shift(images: Tensor, shift: Tensor, max_shift: int) -> Tensor:
    """Pads each image by ``max_shift`` pixels of its edge and crops it to its size again at an offset of its own (DrQ, arXiv 2004.13649, section 3.1).

    Args:
        images: uint8 or float [B, C, H, W].
        shift: int64 [B, 2], rows and columns, 0..2*max_shift; max_shift leaves the image as it is.

    Returns:
        Like ``images``: pixel (y, x) is the image's at (y + shift_y - max_shift, x + shift_x - max_shift), clamped to its edges.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + shift[:, :1] - max_shift).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shift[:, 1:] - max_shift).clamp(0, width - 1)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
