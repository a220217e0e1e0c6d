"""Import of ManiSkill's .h5 trajectories: recorded here by ManiSkill itself, replayed by actions and by states."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stare_lit import keys
from stare_lit.data.demos import DemoDataModule

pytest.importorskip("mani_skill", reason="needs ManiSkill")
from stare_lit.data.h5 import import_h5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of PushCube-v1: the expert's, which succeeds, and one that stands still for six steps."""
    import gymnasium
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.wrappers import RecordEpisode

    from stare_lit.experts.maniskill import ManiSkillExpert

    folder = tmp_path_factory.mktemp("h5")
    simulator = gymnasium.make(
        "PushCube-v1", num_envs=1, obs_mode="none", reward_mode="none", control_mode="pd_ee_delta_pose", sim_backend="physx_cpu", render_backend="none"
    )
    env = RecordEpisode(simulator, str(folder), save_trajectory=True, save_video=False, trajectory_name="t", record_reward=False)
    expert = ManiSkillExpert("PushCube-v1")
    for seed, steps, moves in ((3, 50, 1.0), (4, 6, 0.0)):
        env.reset(seed=seed)
        expert.reset()
        for _ in range(steps):
            info = env.step((expert.act(SimpleNamespace(simulator=env.unwrapped)) * moves).numpy())[-1]
            if bool(info["success"]):
                break
    env.close()
    return folder / "t.h5"


@pytest.fixture(scope="module")
def _camera() -> None:
    from stare_lit.envs.maniskill import ManiSkillEnv

    try:
        ManiSkillEnv("PushCube-v1", image_size=16).close()
    except RuntimeError as error:
        pytest.skip(f"needs a device that SAPIEN can render with: {error}")


@pytest.mark.usefixtures("_camera")
class TestReplay:
    def test_actions_and_states_agree_and_feed_imitation(self, recorded: Path, tmp_path: Path) -> None:
        a = import_h5(recorded, out=tmp_path / "a", image_size=16)
        import_h5(recorded, out=tmp_path / "b", image_size=16, replay="states", num_episodes=1)
        b = import_h5(recorded, out=tmp_path / "b", image_size=16, replay="states", task="PushCube-v1")  # goes on
        assert a.episodes["seed"].tolist() == [3, 4]
        assert a.episodes["success"].tolist() == [True, False]
        assert a.episodes["length"][1] == 6
        assert (a.episodes == b.episodes).all()
        assert a.layout == b.layout
        x, y = (stored.rows(torch.arange(len(stored))) for stored in (a, b))
        for name in x.keys(True, True):
            if "contact" not in name:
                assert torch.allclose(x[name].float(), y[name].float(), atol=1e-5), name
        assert (x[keys.signal("contact")] != y[keys.signal("contact")]).sum() <= 2  # found again by a physics step of its own
        data = DemoDataModule("PushCube-v1", folder=str(tmp_path / "a"), image_size=16, num_episodes=1, batch_size=4)
        data.prepare_data()
        data.setup("fit")
        assert next(iter(data.train_dataloader()))[keys.ACTION_CHUNK].shape == (4, 4, 7)

    def test_without_actions(self, recorded: Path, tmp_path: Path) -> None:
        foreign = _with_mode(recorded, tmp_path, "pd_joint_pos")
        stored = import_h5(foreign, out=tmp_path / "a", image_size=16, replay="states", with_actions=False)
        assert keys.ACTION not in stored.layout
        assert "signals/object_to_goal_xy" in stored.layout
        with pytest.raises(ValueError, match="control_mode is 'pd_joint_pos'"):
            DemoDataModule("PushCube-v1", folder=str(tmp_path / "a"), image_size=16, num_episodes=1).setup("fit")

    def test_episode_that_ends_otherwise_is_left_out(self, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        content = json.loads(recorded.with_suffix(".json").read_text())
        content["episodes"][1]["success"] = True
        shutil.copy(recorded, tmp_path / "t.h5")
        (tmp_path / "t.json").write_text(json.dumps(content))
        assert import_h5(tmp_path / "t.h5", out=tmp_path / "a", image_size=16).num_episodes == 1
        assert "1 ended otherwise than recorded" in capsys.readouterr().out


class TestBadInput:
    def test_other_control_mode(self, recorded: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"control mode 'pd_joint_pos'.*with_actions=False"):
            import_h5(_with_mode(recorded, tmp_path, "pd_joint_pos"), out=tmp_path / "a")
        assert not (tmp_path / "a").exists()

    def test_other_task(self, recorded: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task='PullCube-v1', but"):
            import_h5(recorded, out=tmp_path / "a", task="PullCube-v1")

    def test_missing_files(self, recorded: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="is absent"):
            import_h5(tmp_path / "none.h5", out=tmp_path / "a")
        shutil.copy(recorded, tmp_path / "t.h5")
        with pytest.raises(FileNotFoundError, match=r"t\.json is absent"):
            import_h5(tmp_path / "t.h5", out=tmp_path / "a")

    def test_not_a_trajectory(self, tmp_path: Path) -> None:
        (tmp_path / "t.h5").write_text("no")
        (tmp_path / "t.json").write_text("{}")
        with pytest.raises(ValueError, match="is not an HDF5 file"):
            import_h5(tmp_path / "t.h5", out=tmp_path / "a")


def _with_mode(recorded: Path, folder: Path, mode: str) -> Path:
    """A copy that says it was recorded in control mode ``mode``."""
    shutil.copy(recorded, folder / "foreign.h5")
    content = json.loads(recorded.with_suffix(".json").read_text())
    for episode in content["episodes"]:
        episode["control_mode"] = mode
    (folder / "foreign.json").write_text(json.dumps(content))
    return folder / "foreign.h5"
