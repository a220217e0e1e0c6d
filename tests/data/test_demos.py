"""Demonstrations: independent of the number of processes, resumable, and served as chunks that never leave their episode."""

import os
from pathlib import Path

import pytest
import torch

import stare_lit.data.collect as collect
from stare_lit import keys
from stare_lit.data.demonstrator import EXECUTED_ACTION, DemoSettings, run_expert
from stare_lit.data.demos import DemoDataModule, collect_demos
from stare_lit.data.trajectories import Trajectories
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.envs.toy import ToyEnv
from stare_lit.experts.make import REVISIONS
from stare_lit.experts.toy import ToyExpert

TOY = {"task": "Toy-v0", "image_size": 16}


class SometimesLost(ToyExpert):
    """Stands still on every third seed."""

    def act(self, env: ToyEnv) -> torch.Tensor:
        return super().act(env) * (env._seeds % 3 != 0)[:, None]


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stare_lit.experts.toy.ToyExpert", SometimesLost)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demos") / "a"
    collect_demos(DemoSettings("Toy-v0", image_size=16), 12, out=folder)
    return str(folder)


def same(a: Trajectories, b: Trajectories) -> bool:
    return len(a) == len(b) and bool((a.episodes == b.episodes).all() and (a.rows(torch.arange(len(a))) == b.rows(torch.arange(len(b)))).all())


class TestCollect:
    def test_independent_of_processes_and_calls(self, tmp_path: Path) -> None:
        settings = DemoSettings("Toy-v0", image_size=16, action_noise=0.2)
        here = collect_demos(settings, 80, out=tmp_path / "a", num_workers=0)
        collect_demos(settings, 30, out=tmp_path / "b", num_workers=0)
        there = collect_demos(settings, 80, out=tmp_path / "b", num_workers=2)
        assert here.num_episodes == 80
        assert same(here, there)

    @pytest.mark.slow
    def test_independent_of_processes_and_calls_on_the_simulator(self, tmp_path: Path, vulkan: None) -> None:
        """Exactly, although a simulator that has run other episodes gives other contacts."""
        settings = DemoSettings("PushCube-v1", image_size=16, action_noise=0.1)
        here = collect_demos(settings, 12, out=tmp_path / "a", num_workers=0)
        collect_demos(settings, 3, out=tmp_path / "b", num_workers=1)
        there = collect_demos(settings, 12, out=tmp_path / "b", num_workers=2)
        assert same(here, there)

    def test_only_successes_in_the_order_of_seeds(self, tmp_path: Path, lossy: None) -> None:
        stored = collect_demos(DemoSettings("Toy-v0", image_size=16), 50, out=tmp_path / "a", keep_failures=True, num_workers=0)
        assert stored.episodes["success"].all()
        assert stored.episodes["seed"].tolist() == [seed for seed in range(75) if seed % 3][:50]
        failures = Trajectories(tmp_path / "a" / "failures")
        assert failures.episodes["seed"].tolist() == list(range(0, 74, 3))
        assert not failures.episodes["success"].any()
        assert failures.metadata.kind == "failures"
        last = stored.episodes["start"] + stored.episodes["length"] - 1
        data = stored.rows(torch.arange(len(stored)))
        assert data["next", "success"][last].all()
        assert int(data["next", "success"].sum()) == 50  # each episode ends with the decision that reached success

    def test_killed_between_failures_and_successes(self, tmp_path: Path, lossy: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        arguments = {"out": tmp_path / "a", "keep_failures": True, "num_workers": 0}
        with monkeypatch.context() as patch:
            patch.setattr(collect, "wilson_interval", die)  # after both appends of the first block
            with pytest.raises(KeyboardInterrupt):
                collect_demos(DemoSettings("Toy-v0", image_size=16), 90, **arguments)
        first = Trajectories(tmp_path / "a").num_episodes
        assert 0 < first < 90
        append = collect.TrajectoryWriter.append
        with monkeypatch.context() as patch:
            patch.setattr(collect.TrajectoryWriter, "append", lambda self, *a, **k: append(self, *a, **k) if self.metadata.kind == "failures" else die())
            with pytest.raises(KeyboardInterrupt):
                collect_demos(DemoSettings("Toy-v0", image_size=16), 90, **arguments)
        again = collect_demos(DemoSettings("Toy-v0", image_size=16), 90, **arguments)
        assert again.episodes["seed"].tolist() == [seed for seed in range(200) if seed % 3][:90]
        failed = Trajectories(tmp_path / "a" / "failures").episodes["seed"].tolist()
        assert failed == sorted(set(failed))

    def test_noise_moves_the_executed_action_only(self) -> None:
        env = ToyEnv(4, image_size=16)
        data, _ = run_expert(env, ToyExpert(), [0, 1, 2], action_noise=0.3)
        clean, _ = run_expert(env, ToyExpert(), [0, 1, 2])
        assert torch.equal(clean[keys.ACTION], clean[EXECUTED_ACTION])
        assert torch.equal(data[keys.ACTION][0], clean[keys.ACTION][0])  # the same first state, so the same label
        assert not torch.equal(data[EXECUTED_ACTION][:, :3], data[keys.ACTION][:, :3])
        assert torch.equal(data[EXECUTED_ACTION][:, 3:], data[keys.ACTION][:, 3:])
        assert data[EXECUTED_ACTION].abs().max() <= 1

    def test_a_slipping_gripper_moves_the_executed_action_only(self) -> None:
        data, table = run_expert(ToyEnv(64, image_size=16), ToyExpert(), list(range(64)), gripper_noise=0.05)
        slipped = data[EXECUTED_ACTION][:, 6] != data[keys.ACTION][:, 6]
        assert 0.05 < slipped.float().mean() < 0.25 and torch.equal(data[EXECUTED_ACTION][slipped, 6], -data[keys.ACTION][slipped, 6])
        assert torch.equal(data[EXECUTED_ACTION][:, :6], data[keys.ACTION][:, :6])
        assert table["success"].float().mean() > 0.9  # it goes on from there

    def test_a_jolted_arm_moves_the_executed_action_only(self) -> None:
        data, table = run_expert(ToyEnv(64, image_size=16), ToyExpert(), list(range(64)), arm_noise=0.1)
        jolted = (data[EXECUTED_ACTION][:, :3] != data[keys.ACTION][:, :3]).any(-1)
        assert 0.15 < jolted.float().mean() < 0.25  # a tenth, and one and a half of the fourteen at the beginning of an episode
        assert torch.equal(data[EXECUTED_ACTION][:, 3:], data[keys.ACTION][:, 3:])
        assert table["success"].float().mean() > 0.9  # it goes on from there

    def test_expert_that_fails_is_an_error(self, tmp_path: Path, lossy: None) -> None:
        with pytest.raises(RuntimeError, match=r"42 of 64 seeds .* min_success=0.95"):
            collect_demos(DemoSettings("Toy-v0", image_size=16), 100, out=tmp_path, min_success=0.95)

    def test_seeds_that_run_out(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"seed_range=\(5, 15\) is used up with 10 of num_episodes=11"):
            collect_demos(DemoSettings("Toy-v0", image_size=16), 11, out=tmp_path, seed_range=(5, 15))

    def test_error_in_a_worker_keeps_its_message(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="max_episode_steps=0"):
            collect_demos(DemoSettings("Toy-v0", image_size=16, max_episode_steps=0), 1, out=tmp_path, num_workers=1)

    def test_bad_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task='Cube' is unknown; choose one of .*PushCube-v1"):
            collect_demos(DemoSettings("Cube"), 1, out=tmp_path)
        with pytest.raises(ValueError, match="action_noise=-1"):
            collect_demos(DemoSettings("Toy-v0", action_noise=-1), 1, out=tmp_path)
        with pytest.raises(ValueError, match="gripper_noise=1.0: a probability"):
            collect_demos(DemoSettings("Toy-v0", gripper_noise=1.0), 1, out=tmp_path)
        with pytest.raises(ValueError, match="arm_noise=-0.1: a probability"):
            collect_demos(DemoSettings("Toy-v0", arm_noise=-0.1), 1, out=tmp_path)
        with pytest.raises(ValueError, match="visuals='light': Toy-v0 is drawn without meshes"):
            collect_demos(DemoSettings("Toy-v0", visuals="light"), 1, out=tmp_path)
        with pytest.raises(ValueError, match="num_episodes=0"):
            collect_demos(DemoSettings("Toy-v0"), 0, out=tmp_path)
        with pytest.raises(ValueError, match="num_workers=-1"):
            collect_demos(DemoSettings("Toy-v0"), 1, out=tmp_path, num_workers=-1)
        collect_demos(DemoSettings("Toy-v0", image_size=16), 1, out=tmp_path)
        with pytest.raises(ValueError, match="image_size is 16, asked for 32"):
            collect_demos(DemoSettings("Toy-v0", image_size=32), 1, out=tmp_path)


class TestDataModule:
    def test_makes_what_is_missing(self, tmp_path: Path) -> None:
        data = DemoDataModule(**TOY, folder=str(tmp_path / "a"), num_episodes=3, val_episodes=2, batch_size=8)
        data.prepare_data()
        data.setup("fit")
        assert Trajectories(tmp_path / "a").num_episodes == 5
        written = os.stat(tmp_path / "a" / "shards" / "000000").st_mtime_ns
        data.prepare_data()
        assert os.stat(tmp_path / "a" / "shards" / "000000").st_mtime_ns == written
        assert sum(len(batch) for batch in data.val_dataloader()) == int(Trajectories(tmp_path / "a").episodes["length"][3:].sum())

    def test_batches(self, folder: str) -> None:
        data = DemoDataModule(**TOY, folder=folder, num_episodes=12, batch_size=16, chunk_size=4, max_shift=1)
        data.setup("fit")
        raw = next(iter(data.train_dataloader()))
        image = raw[keys.IMAGE].clone()
        batch = data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0)
        assert batch[keys.IMAGE].shape == (16, 3, 16, 16)
        assert batch[keys.IMAGE].dtype == torch.uint8
        assert not torch.equal(batch[keys.IMAGE], image)
        assert batch[keys.ACTION_CHUNK].shape == (16, 4, 7)
        assert batch[keys.ACTION_IS_PAD].shape == (16, 4)
        assert batch.get(keys.INSTRUCTION).tolist() == [data.instructions[i] for i in batch[keys.INSTRUCTION_ID].tolist()]
        assert "image_shift" not in batch

    def test_chunks_are_the_experts_next_actions(self, folder: str) -> None:
        data = DemoDataModule(**TOY, folder=folder, num_episodes=2, batch_size=4, chunk_size=3)
        data.setup("fit")
        stored = Trajectories(folder)
        padded, mask = stored.padded(torch.tensor([1]), [keys.ACTION])
        start, length = int(stored.episodes["start"][1]), int(mask.sum())
        assert torch.equal(data._rows[keys.ACTION_CHUNK][start : start + length - 2], padded[keys.ACTION][0].unfold(0, 3, 1).transpose(1, 2))
        assert data._rows[keys.ACTION_IS_PAD][start + length - 1].tolist() == [False, True, True]

    def test_starts_are_served_more_often_in_training_only(self, folder: str) -> None:
        settings = {**TOY, "folder": folder, "num_episodes": 10, "val_episodes": 2, "batch_size": 1, "chunk_size": 2}
        once, often = (DemoDataModule(**settings, start_repeats=repeats) for repeats in (1, 3))
        once.setup("fit"), often.setup("fit")
        rows = often._rows[often._served]
        assert len(rows) == len(once._rows) + 10 * 3 * 2
        assert torch.equal(rows[keys.ACTION_CHUNK][:9:3], once._rows[keys.ACTION_CHUNK][:3])  # three times each, then the fourth decision
        assert torch.equal(rows[keys.ACTION_CHUNK][9], once._rows[keys.ACTION_CHUNK][3])
        assert len(often._rows) == len(once._rows)  # held once
        often._rows.set("row", torch.arange(len(often._rows)))
        served = torch.cat([batch["row"] for batch in often.train_dataloader()]).bincount()
        starts = Trajectories(folder).episodes["start"][:10]
        assert served[starts[:, None] + torch.arange(3)].unique().tolist() == [3]
        assert served.sum() == len(once.train_dataloader()) + 10 * 3 * 2
        assert len(often._val_rows) == len(once._val_rows) == len(often.val_dataloader())
        assert often.action_statistics == once.action_statistics

    def test_action_statistics(self, folder: str) -> None:
        data = DemoDataModule(**TOY, folder=folder, num_episodes=12)
        with pytest.raises(RuntimeError, match="prepare_data"):
            _ = data.action_statistics
        data.setup("fit")
        assert data.action_statistics.mask == (True,) * 6 + (False,)
        assert data.action_statistics.q01[3:6] == data.action_statistics.q99[3:6] == (0.0,) * 3

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"image_size": 32}, "image_size is 16, asked for 32"),
            ({"action_noise": 0.1}, "action_noise is 0.0, asked for 0.1"),
            ({"gripper_noise": 0.1}, "gripper_noise is 0.0, asked for 0.1"),
            ({"arm_noise": 0.1}, "arm_noise is 0.0, asked for 0.1"),
            ({"disguised": 0.1}, "disguised=0.1: no other task shares the scene of Toy-v0"),
            ({"task": "PushCube-v1"}, "task is 'Toy-v0', asked for 'PushCube-v1'"),
            ({"num_episodes": 13}, "num_episodes=13 .* holds 12 demonstrations; make more with `stare demos"),
            ({"chunk_size": 100}, "chunk_size=100 is longer"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"start_repeats": 0}, "start_repeats=0: at least 1"),
        ],
    )
    def test_bad_input(self, folder: str, change: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DemoDataModule(**{**TOY, "folder": folder, "num_episodes": 12, **change}).setup("fit")

    def test_default_folder_names_what_it_holds(self) -> None:
        assert DemoDataModule("PushCube-v1", action_noise=0.1).folder == Path("data/demos/PushCube-v1-64px-noise0.1")
        assert DemoSettings("Toy-v0", gripper_noise=0.03, arm_noise=0.05).folder.name == "Toy-v0-64px-noise0-gripper0.03-arm0.05"
        assert DemoSettings("PullCube-v1", disguised=0.5).folder.name == "PullCube-v1-64px-noise0-disguised0.5"
        assert DemoSettings("Toy-v0").metadata(SEED_RANGES["train"]).config["seed_range"] == [0, 1_000_000]

    def test_another_first_seed_is_another_folder_of_other_demonstrations(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        data = DemoDataModule(**TOY, num_episodes=3, first_seed=100, batch_size=4, chunk_size=2)
        assert data.folder == Path("data/demos/Toy-v0-16px-noise0-from100")
        data.prepare_data(), data.setup("fit")
        assert Trajectories(data.folder).episodes["seed"].tolist() == [100, 101, 102]
        with pytest.raises(ValueError, match="seed_range"):
            DemoDataModule(**TOY, folder=str(data.folder), num_episodes=3, chunk_size=2).prepare_data()
        with pytest.raises(ValueError, match="first_seed=-1: the training range has the seeds 0..999999"):
            DemoDataModule(**TOY, first_seed=-1)

    def test_scenes_outside_the_training_range_are_refused_whoever_wrote_the_folder(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = DemoDataModule(**TOY, folder=folder, num_episodes=12, chunk_size=2)
        monkeypatch.setitem(SEED_RANGES, "train", (0, 10))
        with pytest.raises(ValueError, match=r"2 of 12 demonstrations start from seeds outside the training range 0\.\.9 \(such as 10\)"):
            data.setup("fit")

    def test_demonstrations_of_an_earlier_demonstrator_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"folder": str(tmp_path / "a"), "num_episodes": 2, "num_workers": 0, **TOY}
        DemoDataModule(**settings).prepare_data()
        monkeypatch.setitem(REVISIONS, "Toy-v0", 2)
        with pytest.raises(ValueError, match="demonstrator.*delete this one"):
            DemoDataModule(**settings).prepare_data()

    def test_state_variant_has_no_image(self, tmp_path: Path) -> None:
        data = DemoDataModule("Toy-v0", folder=str(tmp_path / "demos"), num_episodes=3, batch_size=4, chunk_size=2, observation="state")
        data.prepare_data(), data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert set(batch["observation"].keys()) == {"state"} and batch[keys.STATE].shape == (4, 11)
        with pytest.raises(ValueError, match="observation"):
            DemoDataModule("Toy-v0", folder=str(tmp_path / "demos"), num_episodes=3, chunk_size=2).setup("fit")
