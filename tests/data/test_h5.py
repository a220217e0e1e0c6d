"""Import of ManiSkill's .h5 trajectories: recorded here by ManiSkill itself, replayed by actions and by states."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stare_lit import keys
from stare_lit.data.demos import DemoDataModule
from stare_lit.envs.robots import OFFICIAL_LAYOUTS, robot_of

pytest.importorskip("mani_skill", reason="needs ManiSkill")
from stare_lit.data.h5 import _check_scenes, import_h5


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


@pytest.mark.usefixtures("vulkan")
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

    def test_labels_may_come_from_any_scene(self, recorded: Path, tmp_path: Path) -> None:
        """Nothing is trained on what has no actions."""
        foreign = _rewritten(recorded, tmp_path, lambda content: content["episodes"][0].update(episode_seed=2_000_000))
        stored = import_h5(foreign, out=tmp_path / "a", image_size=16, replay="states", with_actions=False, num_episodes=1)
        assert stored.episodes["seed"].tolist() == [2_000_000] and stored.episodes["success"].all()

    def test_episode_that_ends_otherwise_is_left_out(self, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        content = json.loads(recorded.with_suffix(".json").read_text())
        content["episodes"][1]["success"] = True
        shutil.copy(recorded, tmp_path / "t.h5")
        (tmp_path / "t.json").write_text(json.dumps(content))
        assert import_h5(tmp_path / "t.h5", out=tmp_path / "a", image_size=16).num_episodes == 1
        assert "1 ended otherwise than recorded" in capsys.readouterr().out


class TestScenesForMeasuring:
    """Demonstrations in scenes that policies are measured in are refused before anything is written."""

    @pytest.mark.parametrize("seed", [1_000_000, 2_000_000, 3_000_000, 5_000_000, -1])
    @pytest.mark.parametrize("replay", ["actions", "states"])
    def test_seeds_outside_the_training_range(self, recorded: Path, tmp_path: Path, seed: int, replay: str) -> None:
        foreign = _rewritten(recorded, tmp_path, lambda content: content["episodes"][1].update(episode_seed=seed))
        with pytest.raises(ValueError, match=rf"1 of 2 episode seeds lie outside the training range 0\.\.999999: {seed} \(episode_id 1\)"):
            import_h5(foreign, out=tmp_path / "a", image_size=16, replay=replay)
        assert not (tmp_path / "a").exists()

    def test_the_edges_of_the_range(self) -> None:
        _check_scenes(Path("t.h5"), "PushCube-v1", {0: 0, 1: 999_999}, "actions", True)
        with pytest.raises(ValueError, match=r"6 of 6 .*: 1000000 \(episode_id 0\), .*, \.\.\.; a policy"):
            _check_scenes(Path("t.h5"), "PushCube-v1", {i: 1_000_000 + i for i in range(6)}, "actions", True)

    @pytest.mark.parametrize("task", sorted(OFFICIAL_LAYOUTS))
    def test_bridge_tasks_whatever_the_seed(self, recorded: Path, tmp_path: Path, task: str) -> None:
        def bridge(content: dict) -> None:
            content["env_info"]["env_id"] = task
            for episode in content["episodes"]:
                episode["control_mode"] = robot_of(task).control_mode

        foreign = _rewritten(recorded, tmp_path, bridge)
        for settings in ({}, {"replay": "states"}, {"with_actions": False}):
            with pytest.raises(ValueError, match=f"a recording of {task} lies in the official layouts .*stare demos --task {task}"):
                import_h5(foreign, out=tmp_path / "a", **settings)
        assert not (tmp_path / "a").exists()
        _check_scenes(foreign, task, {0: 3_000_000}, "states", False)  # labels


def test_labels_of_a_bridge_recording(simulated: Callable[[str], str], tmp_path: Path) -> None:
    """As ManiSkill records it, in an official layout; the scene is put into each recorded state, WidowX's controller too."""
    import gymnasium
    import h5py
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.wrappers import RecordEpisode

    task = simulated("PutCarrotOnPlateInScene-v1")
    kept = {"num_envs": 1, "obs_mode": "rgb+segmentation", "sim_backend": "physx_cpu", "render_backend": "gpu" if torch.cuda.is_available() else "cpu"}
    simulator = gymnasium.make(task, reward_mode="none", control_mode=robot_of(task).control_mode, **kept)
    env = RecordEpisode(simulator, str(tmp_path), save_trajectory=True, save_video=False, trajectory_name="t", record_reward=False)
    env.reset(seed=3)
    for _ in range(3):
        env.step(torch.tensor([0.01, 0, 0, 0, 0, 0, 1]).numpy())
    env.close()
    with pytest.raises(ValueError, match="lies in the official layouts"):
        import_h5(tmp_path / "t.h5", out=tmp_path / "a", image_size=16)
    stored = import_h5(tmp_path / "t.h5", out=tmp_path / "a", image_size=16, replay="states", with_actions=False)
    with h5py.File(tmp_path / "t.h5") as file:
        carrot, plate = (torch.from_numpy(part[:3, :2]) for part in file["traj_0/env_states/actors"].values())
    assert stored.episodes["seed"].tolist() == [3] and len(stored) == 3
    assert torch.allclose(stored.rows(torch.arange(3))[keys.signal("object_to_target_xy")], (carrot - plate).norm(dim=-1), atol=1e-5)


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

    def change(content: dict) -> None:
        for episode in content["episodes"]:
            episode["control_mode"] = mode

    return _rewritten(recorded, folder, change)


def _rewritten(recorded: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    """A copy whose .json ``change`` has changed."""
    shutil.copy(recorded, folder / "foreign.h5")
    content = json.loads(recorded.with_suffix(".json").read_text())
    change(content)
    (folder / "foreign.json").write_text(json.dumps(content))
    return folder / "foreign.h5"
