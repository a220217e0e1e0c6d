"""The trajectory format: what goes in comes out, only complete shards are seen, and what does not belong is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import NonTensorData, TensorDict

from stare_lit import keys
from stare_lit.data.trajectories import Trajectories, TrajectoryMetadata, TrajectoryWriter

METADATA = TrajectoryMetadata(
    task="Toy-v0", action_dim=7, chunk_size=2, control_mode="pd_ee_delta_pose", image_size=8, instructions=("push", "pull"), config={"action_noise": 0.1}
)


def padded_episodes(lengths: list[int], seed: int = 0) -> tuple[TensorDict, torch.Tensor]:
    """[N, T] with random content; the first episode loses a success again (or never has one), the others succeed at their last decision."""
    generator = torch.Generator().manual_seed(seed)
    n, t = len(lengths), max(lengths)
    mask = torch.arange(t) < torch.tensor(lengths)[:, None]
    success = torch.arange(t) == torch.tensor(lengths)[:, None] - 1
    success[0] = (torch.arange(t) == 0) & (lengths[0] > 1)
    tensordict = TensorDict(
        {
            "observation": {
                "image": torch.randint(0, 255, (n, t, 3, 8, 8), dtype=torch.uint8, generator=generator),
                "state": torch.randn(n, t, 4, generator=generator),
            },
            "vla_action": {"chunk": torch.randn(n, t, 2, 7, generator=generator)},
            "instruction_id": torch.ones(n, t, dtype=torch.int64),
            "episode_seed": (seed + torch.arange(n))[:, None].expand(n, t),
            "next": {"success": success[..., None], "reward": success[..., None].float()},
            "mask": mask,
        },
        batch_size=[n, t],
    )
    return tensordict, mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with TrajectoryWriter(tmp_path / "t", METADATA) as writer:
        for seed, lengths in ((0, [3, 5]), (10, [1, 4, 2])):
            writer.append_episodes(*padded_episodes(lengths, seed), extra={"sample": torch.arange(len(lengths))}, info={"first": seed})
    return tmp_path / "t"


class TestRoundTrip:
    def test_episode_table(self, folder: Path) -> None:
        stored = Trajectories(folder, verify=True)
        assert len(stored) == 15
        assert stored.episodes["start"].tolist() == [0, 3, 8, 9, 13]
        assert stored.episodes["length"].tolist() == [3, 5, 1, 4, 2]
        assert stored.episodes["seed"].tolist() == [0, 1, 10, 11, 12]
        assert stored.episodes["success"].tolist() == [False, True, False, True, True]
        assert stored.episodes["sample"].tolist() == [0, 1, 0, 1, 2]
        assert stored.episodes["instruction_id"].tolist() == [1] * 5
        assert stored.infos == [{"first": 0}, {"first": 10}]
        assert stored.metadata == METADATA
        assert stored.select(success=True).tolist() == [1, 3, 4]
        assert stored.select(success=True, limit=1).tolist() == [1]

    def test_rows_across_shards_in_any_order(self, folder: Path) -> None:
        stored = Trajectories(folder)
        every = torch.cat([padded[mask] for padded, mask in (padded_episodes([3, 5], 0), padded_episodes([1, 4, 2], 10))]).exclude("mask")
        index = torch.tensor([14, 0, 7, 8, 0, 13])
        assert (stored.rows(index) == every[index]).all()
        chosen = stored.rows(index, [keys.IMAGE, ("next", "reward")])
        assert set(chosen.keys(True, True)) == {("observation", "image"), ("next", "reward")}
        assert stored.rows(torch.zeros(0, dtype=torch.int64)).shape == (0,)

    def test_padded_is_the_inverse_of_append(self, folder: Path) -> None:
        original, mask = padded_episodes([1, 4, 2], 10)
        again, same_mask = Trajectories(folder).padded(torch.tensor([2, 3, 4]))
        assert torch.equal(mask, same_mask)
        assert (again[mask] == original.exclude("mask")[mask]).all()
        assert not again[~mask]["observation", "image"].any()

    def test_rows_are_copies(self, folder: Path) -> None:
        Trajectories(folder).rows(torch.arange(3))["observation", "state"].fill_(7.0)
        Trajectories(folder, verify=True)

    def test_shard_without_episodes_keeps_its_info(self, tmp_path: Path) -> None:
        with TrajectoryWriter(tmp_path / "t", METADATA) as writer:
            episodes = TensorDict({name: torch.zeros(0, dtype=torch.int64) for name in ("length", "seed", "success", "instruction_id")}, [0])
            writer.append(TensorDict({}, [0]), episodes, info={"attempted": 5})
        stored = Trajectories(tmp_path / "t")
        assert (len(stored), stored.num_episodes, stored.infos) == (0, 0, [{"attempted": 5}])
        with pytest.raises(ValueError, match="no rows"):
            stored.rows(torch.zeros(0, dtype=torch.int64))


class TestWriting:
    def test_leftovers_of_a_killed_writer_are_not_seen_and_go(self, folder: Path) -> None:
        (folder / "shards" / ".000002").mkdir()
        (folder / "shards" / ".000002" / "half").write_text("x")
        assert len(Trajectories(folder)) == 15
        with TrajectoryWriter(folder, METADATA) as writer:
            writer.append_episodes(*padded_episodes([2], 20), extra={"sample": torch.zeros(1, dtype=torch.int64)})
            assert writer.stored.episodes["seed"].tolist() == [0, 1, 10, 11, 12, 20]
        assert sorted(path.name for path in (folder / "shards").iterdir()) == ["000000", "000001", "000002"]

    def test_killed_while_writing(self, tmp_path: Path) -> None:
        """The process dies just before the rename of its second shard: the first one is whole, the lock is free, the next writer goes on."""
        script = (
            "import os, sys; sys.path.insert(0, sys.argv[2]); import stare_lit.data.shards as t; from test_trajectories import *\n"
            "writer = TrajectoryWriter(sys.argv[1], METADATA); writer.append_episodes(*padded_episodes([3, 5]))\n"
            "t.os.rename = lambda *paths: os._exit(9)\nwriter.append_episodes(*padded_episodes([2], 7))"
        )
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "t"), str(Path(__file__).parent)], check=False)
        assert done.returncode == 9
        with TrajectoryWriter(tmp_path / "t", METADATA) as writer:
            assert writer.stored.episodes["seed"].tolist() == [0, 1]
            writer.append_episodes(*padded_episodes([2], 7))
            assert writer.stored.num_episodes == 3

    def test_two_writers(self, tmp_path: Path) -> None:
        with TrajectoryWriter(tmp_path / "t", METADATA), pytest.raises(ValueError, match="another process"):
            TrajectoryWriter(tmp_path / "t", METADATA)
        TrajectoryWriter(tmp_path / "t", METADATA).close()

    @pytest.mark.parametrize(
        "change",
        [{"task": "PushCube-v1"}, {"action_dim": 6}, {"chunk_size": 4}, {"image_size": 16}, {"instructions": ("push",)}, {"config": {"action_noise": 0.0}}],
    )
    def test_foreign_folder(self, folder: Path, change: dict) -> None:
        other = TrajectoryMetadata(**{**METADATA.__dict__, **change})
        name = next(iter(change)) if "config" not in change else "action_noise"
        with pytest.raises(ValueError, match=rf"{name} is .* asked for .*choose another folder"):
            TrajectoryWriter(folder, other)
        TrajectoryWriter(folder, METADATA).close()  # the refused one let go of the lock

    def test_text_is_refused(self, tmp_path: Path) -> None:
        padded, mask = padded_episodes([2])
        padded["language_instruction"] = NonTensorData("push", batch_size=padded.batch_size)
        with TrajectoryWriter(tmp_path / "t", METADATA) as writer, pytest.raises(ValueError, match="only tensors"):
            writer.append_episodes(padded, mask)

    def test_wrong_shapes(self, tmp_path: Path) -> None:
        padded, mask = padded_episodes([2])
        with TrajectoryWriter(tmp_path / "a", METADATA) as writer:
            with pytest.raises(ValueError, match="padding must come last"):
                writer.append_episodes(padded, torch.tensor([[False, True]]))
            with pytest.raises(ValueError, match=r"observation/image.*image_size=8"):
                writer.append_episodes(padded.clone().set(keys.IMAGE, torch.zeros(1, 2, 3, 9, 9, dtype=torch.uint8)), mask)
            with pytest.raises(ValueError, match="vla_action/chunk"):
                writer.append_episodes(padded.clone().set(keys.ACTION_CHUNK, torch.zeros(1, 2, 3, 7)), mask)
            writer.append_episodes(padded, mask)
            with pytest.raises(ValueError, match=r"observation/state is \['float32', \[4\]\], asked for 'absent'"):
                writer.append_episodes(padded.exclude(keys.STATE), mask)


class TestReading:
    def test_expectations(self, folder: Path) -> None:
        Trajectories(folder, task="Toy-v0", image_size=8, action_noise=0.1)
        with pytest.raises(ValueError, match="image_size is 8, asked for 64"):
            Trajectories(folder, image_size=64)
        with pytest.raises(FileNotFoundError, match="stare demos"):
            Trajectories(folder / "absent")

    def test_pickles_and_strange_files_are_refused(self, folder: Path) -> None:
        (folder / "shards" / "000000" / "data" / "other.pickle").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match=r"other\.pickle"):
            Trajectories(folder)

    def test_pickle_named_by_the_shard_is_refused_too(self, folder: Path) -> None:
        path = folder / "shards" / "000000"
        (path / "data" / "other.pickle").write_bytes(pickle.dumps({"a": 1}))
        shard = json.loads((path / "shard.json").read_text())
        shard["sha256"]["data/other.pickle"] = "0"
        del shard["digest"]
        (path / "shard.json").write_text(json.dumps(shard))
        with pytest.raises(ValueError, match=r"other\.pickle"):
            Trajectories(folder)

    def test_short_file(self, folder: Path) -> None:
        file = folder / "shards" / "000000" / "data" / "observation" / "state.memmap"
        os.truncate(file, 8)
        with pytest.raises(ValueError, match="bytes expected"):
            Trajectories(folder)
        assert file.stat().st_size == 8

    def test_changed_bytes_are_found_by_verify(self, folder: Path) -> None:
        file = folder / "shards" / "000000" / "data" / "observation" / "state.memmap"
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
        Trajectories(folder)
        with pytest.raises(ValueError, match="checksum"):
            Trajectories(folder, verify=True)

    def test_other_dtype_than_the_metadata_says(self, folder: Path) -> None:
        metadata = json.loads((folder / "metadata.json").read_text())
        metadata["layout"]["observation/state"] = ["float16", [4]]
        del metadata["digest"]
        (folder / "metadata.json").write_text(json.dumps(metadata))
        with pytest.raises(ValueError, match=r"observation/state is \['float32', \[4\]\], asked for \['float16'"):
            Trajectories(folder)

    def test_other_schema(self, folder: Path) -> None:
        (folder / "metadata.json").write_text(json.dumps({"schema_version": 99}))
        with pytest.raises(ValueError, match="schema version 99"):
            Trajectories(folder)
