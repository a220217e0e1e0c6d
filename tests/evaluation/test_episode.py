"""`stare stages`: one recorded episode, its picture and its lines on the terminal."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from stare_lit.cli.stages import stages
from stare_lit.envs.transforms import RewardConfig
from stare_lit.evaluation.episode import record_episode
from stare_lit.evaluation.stage_plot import draw, terminal
from stare_lit.models.vla.presets import tiny


@pytest.fixture(scope="module")
def episode():
    return record_episode("Toy-v0", 3, image_size=32)


def test_the_expert_goes_through_the_stages_in_order(episode):
    assert episode.success and [index for index, _, _ in episode.bands()] == list(range(len(episode.stage_names) + 1))
    assert episode.stage_index[-1] == len(episode.stage_names)
    num = len(episode.stage_index)
    assert len(episode.images) == len(episode.potential) == len(episode.time) == num and len(episode.reward) == num - 1


def test_bands_meet_and_cover_the_episode(episode):
    bands = episode.bands()
    assert bands[0][1] == 0 and bands[-1] == (len(episode.stage_names), episode.time[-1], episode.time[-1] + 1)  # done, since the last state
    assert all(before[2] == after[1] for before, after in zip(bands, bands[1:], strict=False))


@pytest.mark.parametrize(
    ("stage_index", "expected"),
    [
        ([0, 0, 1, 2], [(0, 0, 4), (1, 4, 6), (2, 6, 7)]),  # the last decision completes it
        ([0, 1, 2, 2], [(0, 0, 2), (1, 2, 4), (2, 4, 6)]),
        ([0, 0, 0, 0], [(0, 0, 6)]),
        ([0, 1, 0, 1], [(0, 0, 2), (1, 2, 4), (0, 4, 6), (1, 6, 7)]),
        ([0], [(0, 0, 1)]),
    ],
)
def test_bands_by_hand(episode, stage_index, expected):
    time = torch.arange(len(stage_index)) * 2
    assert replace(episode, stage_index=torch.tensor(stage_index), time=time).bands() == expected


def test_the_shaping_is_that_of_the_potential_drawn(episode):
    shaping, potential = episode.reward - episode.sparse_reward, episode.potential
    expected = 0.99 * potential[1:] - potential[:-1]
    expected[-1] = -potential[-2]  # a true end has potential 0
    assert torch.allclose(shaping, expected, atol=1e-6)


def test_the_same_again_to_the_bit_and_another_reward():
    one, other = (record_episode("Toy-v0", 3, image_size=32, action_noise=0.3) for _ in range(2))
    assert torch.equal(one.images, other.images) and torch.equal(one.reward, other.reward)
    sparse = record_episode("Toy-v0", 3, image_size=32, reward=RewardConfig(mode="sparse"))
    assert torch.equal(sparse.reward, sparse.sparse_reward)


def test_a_policy_decides_in_chunks():
    torch.manual_seed(0)
    found = record_episode("Toy-v0", 3, policy=tiny(4, image_size=32, channels=(8, 8, 8), hidden_size=32, num_layers=1), temperature=1.0)
    assert not found.success and found.time.diff().max() == 4
    with pytest.raises(ValueError, match=r"action_noise=0.1: is for the expert"):
        record_episode("Toy-v0", 3, policy=tiny(4, image_size=32, channels=(8, 8, 8)), action_noise=0.1)
    with pytest.raises(ValueError, match=r"temperature=5.0: is for a policy"):
        record_episode("Toy-v0", 3, temperature=5.0)


def test_the_picture_names_every_stage(episode):
    figure = draw(episode)
    written = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert {*episode.stage_names, "done"} <= written and "success" in figure.get_suptitle()
    stage = figure.axes[1]
    assert stage.get_xlim() == (0, episode.time[-1] + 1)
    console = Console(width=120, file=StringIO())
    console.print(terminal(episode))
    assert all(name in console.file.getvalue() for name in (*episode.stage_names, "potential", "reward"))
    assert console.file.getvalue().rstrip().endswith(f" done  {int(episode.time[-1])}")
    long = replace(episode, time=episode.time * 10)  # the band of the last state is too narrow for its name
    assert "done" in {text.get_text() for ax in draw(long).axes for text in ax.texts}


def test_the_command_writes_a_picture(tmp_path, capsys):
    stages(task="Toy-v0", episode=1, image_size=32, output=str(tmp_path / "new" / "toy.png"))
    assert (tmp_path / "new" / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert "toy.png" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(ValueError, match="'Nope-v0' has no stages"):
        stages(task="Nope-v0", output=str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["x", "x.foo", "x.png.part"])
def test_a_file_of_no_known_format_is_refused_before_the_episode(name, monkeypatch):
    monkeypatch.setattr("stare_lit.cli.stages.record_episode", lambda *_, **__: pytest.fail("an episode was run"))
    with pytest.raises(ValueError, match=f"output='{name}': its ending chooses the format; choose one of .*png"):
        stages(task="Toy-v0", output=name)


def test_the_official_split_is_drawn_through_its_own_camera(simulated, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("stare_lit.cli.stages.save", lambda found, output: shown.update(image=found.images[0]))
    stages(task=simulated("PutCarrotOnPlateInScene-v1"), split="official", output=str(tmp_path / "x.png"))
    assert tuple(shown["image"].shape) in ((3, 480, 640), (480, 640, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0: must be at least 1"),
        ({"task": "PushCube-v1", "image_size": 0}, "image_size=0: at least 8 pixels"),
        ({"visuals": "light"}, "visuals='light': Toy-v0 is drawn without meshes"),
        ({"cameras": ("hand_camera",)}, "Toy-v0 is seen from above alone"),
        ({"cameras": ("hand_camera",), "checkpoint": "runs/x"}, "Toy-v0 is seen from above alone"),
        ({"cameras": ("hand_camera",), "checkpoint": "runs/x", "task": "StackCube-v1"}, "cameras=.*checkpoint='runs/x' sees through its own"),
        ({"action_noise": -1.0}, "action_noise=-1.0: a standard deviation"),
        ({"temperature": 5.0}, "temperature=5.0: is for a policy"),
        ({"episode": 1_000_000}, r"episode=1000000: the validation split has the episodes 0\.\.999999"),
        ({"episode": -1}, "episode=-1: the validation split"),
        ({"reward": RewardConfig(mode="dense")}, "reward.mode='dense': the environment's own reward holds no shaping"),
        ({"task": "PutCarrotOnPlateInScene-v1", "split": "official", "image_size": 64}, "image_size=64: split='official' draws the benchmark's picture"),
    ],
)
def test_the_command_ignores_no_setting(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        stages(**{"task": "Toy-v0", "output": str(tmp_path / "x.png")} | settings)
    assert not (tmp_path / "x.png").exists()
