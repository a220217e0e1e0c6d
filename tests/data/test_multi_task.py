"""Demonstrations of several tasks together."""

from pathlib import Path

import pytest
import torch
import yaml

from stare_lit import keys
from stare_lit.data.demos import DemoDataModule
from stare_lit.data.multi_task import MultiTaskDemoDataModule
from stare_lit.data.trajectories import Trajectories
from stare_lit.envs.factory import make_env
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.signals import INSTRUCTIONS

PUSH, PULL, STACK = "PushCube-v1", "PullCube-v1", "StackCube-v1"


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


@pytest.mark.usefixtures("vulkan")
def test_disguised_demonstrations_look_as_the_other_task_and_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"num_episodes": 4, "batch_size": 8, "chunk_size": 2, "image_size": 16, "num_workers": 0}
    MultiTaskDemoDataModule([PUSH, PULL], **settings, disguised=0.5).prepare_data()
    pictures = {}
    for task in (PUSH, PULL):
        folder = tmp_path / "data" / "demos" / f"{task}-16px-noise0-disguised0.5"
        stored = Trajectories(folder)
        starts = stored.rows(stored.episodes["start"])[keys.IMAGE]
        env = make_env(task, 1, image_size=16, chunk_size=1)
        plain = [env.reset(seed=[seed])[keys.IMAGE].reshape(3, 16, 16) for seed in stored.episodes["seed"].tolist()]
        env.close()
        pictures[task] = [bool(torch.equal(ours, own)) for ours, own in zip(starts, plain, strict=True)]
        expected = [not Perturbation(disguised=0.5).disguises(seed) for seed in stored.episodes["seed"].tolist()]
        assert pictures[task] == expected
        with pytest.raises(ValueError, match="disguised is 0.5, asked for 0.0"):
            DemoDataModule(task, folder=str(folder), **settings).prepare_data()
    assert {True, False} == set(pictures[PUSH])


def test_the_shipped_file_disguises_both_of_its_tasks():
    data = yaml.safe_load((Path(__file__).parents[2] / "configs" / "multi_task" / "push_pull.yaml").read_text())["data"]["init_args"]
    module = MultiTaskDemoDataModule(**data)
    assert [(part.task, part.settings.disguised) for part in module.parts] == [(PUSH, 0.5), (PULL, 0.5)]


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        ([], {}, r"tasks=\[\]"),
        ([PUSH, PUSH], {}, "each once"),
        ([PUSH, PULL], {"folder": "demos"}, "folder='demos': each task is kept in a folder of its own"),
        ([PUSH, "PutCarrotOnPlateInScene-v1"], {}, "are of different robots"),
        ([PUSH, STACK], {"disguised": 0.5}, "disguised=0.5: no other task shares the scene of StackCube-v1"),
        ([PUSH, "PushCub-v1"], {}, "task='PushCub-v1' is unknown"),
        ([PUSH, "Toy-v0"], {}, r"tasks=\['PushCube-v1', 'Toy-v0'\]: Toy-v0 has a world and a state of its own"),
        (["Toy-v0", PUSH], {"observation": "state"}, "Toy-v0 has a world and a state of its own"),
    ],
)
def test_refusals(tasks, settings, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskDemoDataModule(tasks, **settings)


def test_the_toy_alone_is_no_mixture():
    assert MultiTaskDemoDataModule(["Toy-v0"]).tasks == ("Toy-v0",)


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Of two tasks, whose states have 35 and 48 numbers."""
    monkeypatch.chdir(tmp_path)
    return MultiTaskDemoDataModule([PUSH, STACK], observation="state", num_episodes=2, batch_size=4, chunk_size=2, num_workers=0)


SIZES = rf"tasks=\['{PUSH}', '{STACK}'\]: their states have different sizes \(\{{'{PUSH}': 35, '{STACK}': 48\}}\).*observation='image'"


@pytest.mark.usefixtures("vulkan")
def test_states_of_different_sizes_are_refused_before_anything_is_collected(states, tmp_path):
    with pytest.raises(ValueError, match=SIZES):
        states.prepare_data()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("vulkan")
def test_states_of_different_sizes_are_refused_before_they_are_joined(states, monkeypatch):
    for part in states.parts:  # as `stare demos` makes them, one task at a time
        part.prepare_data()
    with pytest.raises(ValueError, match=SIZES):
        states.setup("fit")
    monkeypatch.setattr("stare_lit.data.demonstrator.DemoSettings.demonstrator", lambda _: pytest.fail("made a simulator to learn what the folders say"))
    with pytest.raises(ValueError, match=SIZES):
        states.prepare_data()


@pytest.mark.usefixtures("vulkan")
def test_states_of_one_size_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = MultiTaskDemoDataModule([PUSH, PULL], observation="state", num_episodes=2, batch_size=4, chunk_size=2, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[keys.STATE].shape == (4, 35)


@pytest.mark.usefixtures("vulkan")
def test_starts_of_every_task_are_served_more_often(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"observation": "state", "num_episodes": 2, "batch_size": 1, "chunk_size": 2, "num_workers": 0}
    once, often = (MultiTaskDemoDataModule([PUSH, PULL], **settings, start_repeats=repeats) for repeats in (1, 3))
    once.prepare_data()
    once.setup("fit"), often.setup("fit")
    served = [torch.cat([batch[keys.INSTRUCTION_ID] for batch in data.train_dataloader()]).bincount() for data in (once, often)]
    assert (served[1] - served[0]).tolist() == [2 * 3 * 2] * 2  # two more of each of two episodes' first three decisions
    assert often.action_statistics == once.action_statistics
