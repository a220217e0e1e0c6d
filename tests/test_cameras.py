"""Two cameras: StackCube-v1's own robot carries one in its hand, which sees what the arm hides. Demonstrations, policy and environment agree on them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.callbacks.video import FrameRecorder
from stare_lit.data.demonstrator import DemoSettings
from stare_lit.data.demos import DemoDataModule, collect_demos
from stare_lit.data.multi_task import MultiTaskDemoDataModule
from stare_lit.data.trajectories import TrajectoryWriter
from stare_lit.envs.factory import make_env, seeded_reset
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.evaluation.episode import one_picture, record_episode
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny

CAMERAS = ("base_camera", "hand_camera")


def policy() -> VLAPolicy:
    torch.manual_seed(0)
    return tiny(16, image_size=32, channels=(8, 8, 8), hidden_size=32, num_layers=1, chunk_size=2, keypoints=4, cameras=CAMERAS)


def test_demonstrations_policy_and_environment_agree(tmp_path: Path, vulkan: None) -> None:
    settings = {"task": "StackCube-v1", "image_size": 32, "cameras": CAMERAS}
    collect_demos(DemoSettings(**settings), 1, out=tmp_path / "demos", num_workers=0)
    data = DemoDataModule(**settings, folder=str(tmp_path / "demos"), num_episodes=1, batch_size=4, chunk_size=2, max_shift=2)
    data.prepare_data(), data.setup("fit")
    acting = policy()
    acting.set_action_statistics(data.action_statistics)
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    batch.set(keys.ACTION_TOKENS, acting.encode_actions(batch[keys.ACTION_CHUNK]))
    acting.logits(batch).sum().backward()
    env = make_env("StackCube-v1", 2, num_workers=1, **acting.environment)
    try:
        start = seeded_reset(env, [0, 1], exact=False)
        assert set(start[keys.IMAGE].keys()) == set(CAMERAS)
        assert not torch.equal(start[keys.IMAGE]["base_camera"], start[keys.IMAGE]["hand_camera"])
        down = acting.act(start, temperature=0.0).set(keys.ACTION_CHUNK, torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]).expand(2, 2, 7).clone())
        seen = env.step(down)["next", *keys.IMAGE, "hand_camera"].float()
        assert (seen - start[(*keys.IMAGE, "hand_camera")].float()).abs().mean() > 2.0  # it moves with the hand: of 255; nothing else moves
    finally:
        env.close()
    found = record_episode("StackCube-v1", 0, policy=acting, max_episode_steps=4)
    assert found.images.shape == (3, 3, 64, 32)
    stored = data._rows[keys.IMAGE]  # of the same seed: the first image is the same
    assert torch.equal(found.images[0, :, 32:], stored["hand_camera"][0])


def test_one_camera_of_several_is_read_by_the_policy_that_names_it(vulkan: None) -> None:
    acting = tiny(16, image_size=32, channels=(8, 8, 8), hidden_size=32, num_layers=1, chunk_size=2, cameras=("hand_camera",))
    env = make_env("StackCube-v1", 1, num_workers=0, **acting.environment)
    both = make_env("StackCube-v1", 1, num_workers=0, image_size=32, cameras=CAMERAS)
    try:
        seen = seeded_reset(env, [0], exact=False)
        assert torch.equal(seen[keys.IMAGE], seeded_reset(both, [0], exact=False)[(*keys.IMAGE, "hand_camera")])
        assert acting.act(seen, temperature=0.0)[keys.ACTION_CHUNK].shape == (1, 2, 7)
    finally:
        env.close(), both.close()


def test_cameras_travel_with_the_policy(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path)
    assert VLAPolicy.from_pretrained(tmp_path).environment == {"chunk_size": 2, "image_size": 32, "observation": "image", "cameras": list(CAMERAS)}


def test_folder_and_metadata_name_them() -> None:
    assert DemoSettings("StackCube-v1", cameras=CAMERAS).folder == Path("data/demos/StackCube-v1-64px-base_camera-hand_camera-noise0")
    config = DemoSettings("StackCube-v1", cameras=CAMERAS).metadata((0, 1)).config
    assert config["cameras"] == list(CAMERAS) and DemoSettings("StackCube-v1").metadata((0, 1)).config["cameras"] == []


@pytest.mark.parametrize(("stored", "asked"), [((), ("hand_camera",)), (("hand_camera",), ()), (CAMERAS, ("hand_camera",))])
def test_demonstrations_seen_through_others_are_refused(tmp_path: Path, stored: tuple[str, ...], asked: tuple[str, ...]) -> None:
    TrajectoryWriter(tmp_path, DemoSettings("StackCube-v1", cameras=stored).metadata(SEED_RANGES["train"])).close()
    with pytest.raises(ValueError, match="holds other trajectories: cameras"):
        DemoDataModule("StackCube-v1", folder=str(tmp_path), cameras=asked)._trajectories()
    imported = replace(
        DemoSettings("StackCube-v1").metadata((0, 1)), config={"imported_from": "x.h5"}
    )  # such a folder says nothing of cameras: the robot's own
    TrajectoryWriter(tmp_path / "imported", imported).close()
    with pytest.raises(ValueError, match="holds other trajectories: cameras"):
        DemoDataModule("StackCube-v1", folder=str(tmp_path / "imported"), cameras=("hand_camera",))._trajectories()


def test_a_task_without_the_camera_is_told_before_demonstrations_of_another_are_made(tmp_path: Path, vulkan: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = MultiTaskDemoDataModule(["StackCube-v1", "PushCube-v1"], cameras=CAMERAS, num_episodes=1)
    with pytest.raises(ValueError, match=r"cameras=.*PushCube-v1 has \['base_camera'\]"):
        data.prepare_data()
    assert not (tmp_path / "data").exists()


def test_what_has_no_cameras_refuses_them(tmp_path: Path) -> None:
    for make in (lambda: make_env("Toy-v0", 1, cameras=CAMERAS), lambda: collect_demos(DemoSettings("Toy-v0", cameras=CAMERAS), 1, out=tmp_path)):
        with pytest.raises(ValueError, match=r"cameras=\['base_camera', 'hand_camera'\]: Toy-v0 is seen from above alone"):
            make()
    for make in (DemoSettings, partial(make_env, num_envs=1, num_workers=0)):
        with pytest.raises(ValueError, match="cameras=.*observation='state': name each once, for observation='image'"):
            make("StackCube-v1", observation="state", cameras=CAMERAS)
        with pytest.raises(ValueError, match="cameras=.*name each once"):
            make("StackCube-v1", cameras=("hand_camera", "hand_camera"))
    with pytest.raises(ValueError, match="cameras=.*with 0 towers: name each once, for a policy that sees images"):
        tiny(16, observation="state", cameras=CAMERAS)


def test_a_film_shows_them_one_below_the_other() -> None:
    images = TensorDict({name: torch.full((1, 3, 8, 8), value, dtype=torch.uint8) for name, value in (("hand", 2), ("base", 1))}, [1])
    assert one_picture(images)[0, 0, :, 0].tolist() == [1] * 8 + [2] * 8
    recorder = FrameRecorder([0])
    recorder(TensorDict({keys.IMAGE: images, keys.EPISODE_SEED: torch.zeros(1, 1, dtype=torch.int64)}, [1]))
    assert recorder.frames[0][0].shape == (3, 16, 8)
