"""Demonstrations of several tasks together."""

import pytest
import torch

from stare_lit import keys
from stare_lit.data.multi_task import MultiTaskDemoDataModule
from stare_lit.envs.signals import INSTRUCTIONS

PUSH, PULL = "PushCube-v1", "PullCube-v1"


@pytest.mark.usefixtures("vulkan")
def test_two_tasks_are_shuffled_together_and_told_apart_by_their_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = MultiTaskDemoDataModule([PUSH, PULL], num_episodes=3, batch_size=16, chunk_size=2, image_size=16, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    batches = [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    rows = torch.cat([batch.select(keys.INSTRUCTION_ID, keys.IMAGE) for batch in batches])
    assert data.instructions == (*INSTRUCTIONS[PUSH], *INSTRUCTIONS[PULL])
    assert set(rows[keys.INSTRUCTION_ID].tolist()) == {0, 1} and any(batch[keys.INSTRUCTION_ID].unique().numel() == 2 for batch in batches)
    assert all(batch[keys.INSTRUCTION][i] == data.instructions[batch[keys.INSTRUCTION_ID][i]] for batch in batches for i in range(len(batch)))
    single = [part.settings.folder for part in data.parts]
    assert len({*single}) == 2 and all((folder / "metadata.json").is_file() for folder in single)
    statistics = data.action_statistics
    assert statistics.q01[0] < -0.3 and statistics.q99[0] > 0.3  # one task moves forward, the other back
    assert statistics.mask == (True,) * 6 + (False,)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        ([], {}, r"tasks=\[\]"),
        ([PUSH, PUSH], {}, "each once"),
        ([PUSH, PULL], {"folder": "demos"}, "folder='demos': each task is kept in a folder of its own"),
        ([PUSH, "PutCarrotOnPlateInScene-v1"], {}, "are of different robots"),
        ([PUSH, "PushCub-v1"], {}, "task='PushCub-v1' is unknown"),
    ],
)
def test_refusals(tasks, settings, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskDemoDataModule(tasks, **settings)
