"""Batches: chunks by hand, shifts by hand, and an order that a resumed run goes on with."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from tensordict import TensorDict

from stare_lit.data.batches import IMAGE_SHIFT, BatchLoader, action_chunks, random_shift, start_repeated

ROWS = TensorDict({"row": torch.arange(23)}, [23])


def rows_of(batches: list[TensorDict]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def test_chunks_by_hand() -> None:
    actions = torch.tensor([0.0, 1, 2, 10, 20, 21])[:, None].expand(6, 7)
    chunk, is_pad = action_chunks(actions, torch.tensor([3, 1, 2]), 3)
    assert chunk[..., 0].tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [10, 10, 10], [20, 21, 21], [21, 21, 21]]
    assert is_pad.int().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert chunk.shape == (6, 3, 7)


def test_chunks_of_one() -> None:
    actions = torch.randn(4, 7)
    chunk, is_pad = action_chunks(actions, torch.tensor([2, 2]), 1)
    assert torch.equal(chunk[:, 0], actions)
    assert not is_pad.any()


def test_start_repeated_by_hand() -> None:
    lengths = torch.tensor([5, 2])
    assert start_repeated(lengths, 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6]
    assert start_repeated(lengths, 1).tolist() == list(range(7))


def test_random_shift_by_hand() -> None:
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(3, 2, 1, 1)
    shifted = random_shift(image, torch.tensor([[1, 1], [0, 1], [1, 2]]), 1)
    assert torch.equal(shifted[0], image[0])
    assert shifted[1, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shifted[2, 1].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert shifted.dtype == torch.uint8


class TestBatchLoader:
    def test_epochs_are_seeded_permutations(self) -> None:
        loader = BatchLoader(ROWS, 5, seed=3)
        first, second = rows_of(list(loader)), rows_of(list(loader))
        assert len(first) == len(second) == len(loader) == 4
        assert first != second
        assert len({row for batch in first for row in batch}) == 20
        assert rows_of(list(BatchLoader(ROWS, 5, seed=3))) == first
        assert rows_of(list(BatchLoader(ROWS, 5, seed=4))) != first

    def test_groups_stay_together_and_are_shuffled(self) -> None:
        groups = ROWS["row"] // 3 * 10
        loader = BatchLoader(ROWS, 6, drop_last=False, groups=groups)
        first, second = (sum(rows_of(list(loader)), []) for _ in range(2))
        assert sorted(first) == sorted(second) == list(range(23)) and first != second
        for order in (first, second):
            assert [row for row in order if row // 3 == order[4] // 3] == sorted(row for row in order if row // 3 == order[4] // 3)
            changes = sum(a // 3 != b // 3 for a, b in zip(order[:-1], order[1:], strict=True))
            assert changes == 7  # eight groups

    def test_state_goes_on(self) -> None:
        whole = BatchLoader(ROWS, 5, max_shift=2)
        batches = [*whole, *whole]
        for stop in (1, 4, 6):
            loader = BatchLoader(ROWS, 5, max_shift=2)
            iterator = iter(loader)
            for _ in range(stop):
                if next(iterator, None) is None:
                    iterator = iter(loader)
                    next(iterator)
            again = BatchLoader(ROWS, 5, max_shift=2)
            again.load_state_dict(loader.state_dict())
            rest = [*again, *again][: 8 - stop]
            assert all((a == b).all() for a, b in zip(rest, batches[stop:], strict=True))

    def test_in_order_always_serves_all(self) -> None:
        loader = BatchLoader(ROWS, 5, shuffle=False)
        next(iter(loader))
        assert sum(rows_of(list(loader)), []) == list(range(23))
        assert len(loader) == 5

    def test_ranks_share_the_rows(self) -> None:
        parts = [sum(rows_of(list(BatchLoader(ROWS, 11, rank=rank, world_size=2))), []) for rank in (0, 1)]
        assert len(set(parts[0]) | set(parts[1])) == 22

    def test_shifts(self) -> None:
        shift = torch.cat([batch[IMAGE_SHIFT] for batch in BatchLoader(ROWS, 5, max_shift=1)])
        assert set(shift.unique().tolist()) == {0, 1, 2}

    def test_workers_and_short_last_batches(self) -> None:
        state = torch.random.get_rng_state()
        here, there = (list(BatchLoader(ROWS, 5, drop_last=False, num_workers=workers)) for workers in (0, 1))
        assert [len(batch) for batch in here] == [5, 5, 5, 5, 3]
        assert all((a == b).all() for a, b in zip(here, there, strict=True))
        assert torch.equal(state, torch.random.get_rng_state())  # draws nothing from the global generator

    @pytest.mark.filterwarnings("ignore")
    def test_lightning_validates_with_it(self) -> None:
        seen = []

        class Module(BoringModel):
            def validation_step(self, batch: TensorDict, index: int) -> None:
                seen.append(len(batch))

        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        Trainer(accelerator="cpu", **quiet).validate(Module(), BatchLoader(ROWS, 5, shuffle=False))
        assert seen == [5, 5, 5, 5, 3]

    def test_too_few_rows(self) -> None:
        with pytest.raises(ValueError, match=r"batch_size=24: must be 1 to 23"):
            BatchLoader(ROWS, 24)

    @pytest.mark.parametrize("limit", [1.0, 3])
    @pytest.mark.filterwarnings("ignore")
    def test_lightning_resumes_at_every_step(self, tmp_path: Path, limit: float) -> None:
        def fit(checkpoint: Path | None = None) -> list[list[int]]:
            seen = []

            class Module(BoringModel):
                def training_step(self, batch: TensorDict, index: int) -> torch.Tensor:
                    seen.append(batch["row"].tolist())
                    return self.layer.weight.sum()

            every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = Trainer(max_steps=9, max_epochs=-1, limit_train_batches=limit, accelerator="cpu", callbacks=every, **quiet)
            trainer.fit(Module(), BatchLoader(ROWS, 5), ckpt_path=checkpoint, weights_only=True)
            return seen

        whole = fit()
        assert len(whole) == 9
        for step in (2, 3, 4, 5):
            assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]
