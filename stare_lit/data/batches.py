"""Batches from tensors in memory: one gather a batch, an order that a checkpoint can go on from, chunks of actions, random shifts."""

from collections.abc import Iterator

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.transforms import ActionChunkTransform

from stare_lit import keys

IMAGE_SHIFT = "image_shift"
"""Key of the shift drawn for each sample, int64 [B, 2], rows and columns, 0..2*pad."""


class BatchLoader:
    """Whole batches of the rows of a TensorDict [M], in a seeded order; an iterable that Lightning takes for a DataLoader.

    The order of epoch e is a permutation from (seed, e); ``state_dict`` is (epoch, batches served), so that a run that is resumed in the middle
    of an epoch sees exactly the batches it would have seen. Lightning saves and restores the state by itself, and says the epoch (``set_epoch``).

    Args:
        data: rows in memory.
        batch_size: rows in a batch of this rank.
        shuffle: a new permutation each epoch and no short last batch; otherwise in order, with all rows.
        max_shift: draw an `IMAGE_SHIFT` of up to so many pixels each way for each sample, from (seed, epoch, batch).
        rank, world_size: this rank takes every ``world_size``-th row of the order.

    Raises:
        ValueError: fewer rows than one batch needs.
    """

    def __init__(
        self, data: TensorDict, batch_size: int, *, seed: int = 0, shuffle: bool = True, max_shift: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or (shuffle and len(data) // world_size < batch_size):
            raise ValueError(f"batch_size={batch_size}: must be 1 to {len(data) // world_size}, the rows there are for each of {world_size} process(es); "
                             "lower it, or use more episodes")  # fmt: skip
        self._data, self._batch_size, self._seed, self._shuffle, self._max_shift = data, batch_size, seed, shuffle, max_shift
        self._rank, self._world_size = rank, world_size
        self.epoch, self.position = 0, 0

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
        return rows // self._batch_size if self._shuffle else -(-rows // self._batch_size)

    def __iter__(self) -> Iterator[TensorDict]:
        """The rest of the present epoch, or the next one where that has been served to its end; without ``shuffle`` always all batches."""
        if not self._shuffle:
            self.position = 0
        elif self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = self._order()
        while self.position < len(self):
            start = self.position * self._batch_size
            batch = self._data[order[start : start + self._batch_size]]
            if self._max_shift:
                batch.set(IMAGE_SHIFT, torch.randint(0, 2 * self._max_shift + 1, (len(batch), 2), generator=self._generator(1, self.position, self._rank)))
            self.position += 1
            yield batch

    def _order(self) -> Tensor:
        rows = len(self._data)
        order = torch.randperm(rows, generator=self._generator(0)) if self._shuffle else torch.arange(rows)
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
