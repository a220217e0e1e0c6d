"""Two cameras: StackCube-v1's own robot carries one in its hand, which sees what the arm hides. Demonstrations, policy and environment agree on them."""

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.callbacks.video import FrameRecorder
from stare_lit.data.demonstrator import DemoSettings
from stare_lit.data.demos import DemoDataModule, collect_demos
from stare_lit.envs.factory import make_env, seeded_reset
from stare_lit.evaluation.episode import one_picture, record_episode
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny

CAMERAS = ("base_camera", "hand_camera")


def policy() -> VLAPolicy:
    torch.manual_seed(0)
    return tiny(16, image_size=32, channels=(8, 8, 8), hidden_size=32, num_layers=1, chunk_size=2, keypoints=4, cameras=CAMERAS)


def test_demonstrations_policy_and_environment_agree(tmp_path: Path, vulkan: None) -> None:
    settings = {"task": "StackCube-v1", "image_size": 32, "cameras": CAMERAS}
    collect_demos(num_episodes=1, out=tmp_path / "demos", num_workers=0, **settings)
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
        step = env.step(acting.act(start, temperature=0.0))
        assert step["next", *keys.IMAGE, "hand_camera"].shape == (2, 3, 32, 32)
    finally:
        env.close()
    found = record_episode("StackCube-v1", 0, policy=acting, max_episode_steps=4)
    assert found.images.shape == (3, 3, 64, 32)
    stored = data._rows[keys.IMAGE]  # of the same seed: the first image is the same
    assert torch.equal(found.images[0, :, 32:], stored["hand_camera"][0])


def test_one_camera_of_several_is_read_by_the_policy_that_names_it(vulkan: None) -> None:
    acting = tiny(16, image_size=32, channels=(8, 8, 8), hidden_size=32, num_layers=1, chunk_size=2, cameras=("hand_camera",))
    env = make_env("StackCube-v1", 1, num_workers=0, **acting.environment)
    try:
        assert acting.act(seeded_reset(env, [0], exact=False), temperature=0.0)[keys.ACTION_CHUNK].shape == (1, 2, 7)
    finally:
        env.close()


def test_cameras_travel_with_the_policy(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path)
    assert VLAPolicy.from_pretrained(tmp_path).environment == {"chunk_size": 2, "image_size": 32, "observation": "image", "cameras": list(CAMERAS)}


def test_folder_and_metadata_name_them() -> None:
    assert DemoSettings("StackCube-v1", cameras=CAMERAS).folder == Path("data/demos/StackCube-v1-64px-base_camera-hand_camera-noise0")
    config = DemoSettings("StackCube-v1", cameras=CAMERAS).metadata((0, 1)).config
    assert config["cameras"] == list(CAMERAS) and "cameras" not in DemoSettings("StackCube-v1").metadata((0, 1)).config


def test_what_has_no_cameras_refuses_them(tmp_path: Path) -> None:
    for make in (lambda: make_env("Toy-v0", 1, cameras=CAMERAS), lambda: collect_demos("Toy-v0", 1, out=tmp_path, cameras=CAMERAS)):
        with pytest.raises(ValueError, match=r"cameras=\['base_camera', 'hand_camera'\]: Toy-v0 is seen from above alone"):
            make()
    with pytest.raises(ValueError, match="cameras=.*observation='state', which renders nothing"):
        DemoSettings("StackCube-v1", observation="state", cameras=CAMERAS)


def test_a_film_shows_them_one_below_the_other() -> None:
    images = TensorDict({name: torch.full((1, 3, 8, 8), value, dtype=torch.uint8) for name, value in (("hand", 2), ("base", 1))}, [1])
    assert one_picture(images)[0, 0, :, 0].tolist() == [1] * 8 + [2] * 8
    recorder = FrameRecorder([0])
    recorder(TensorDict({keys.IMAGE: images, keys.EPISODE_SEED: torch.zeros(1, 1, dtype=torch.int64)}, [1]))
    assert recorder.frames[0][0].shape == (3, 16, 8)
