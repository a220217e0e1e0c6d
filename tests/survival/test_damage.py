"""Full disks, folders that cannot be written to, damaged and foreign files: one clear error each, and nothing in them is ever executed."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from toy_phases import arguments, differences

from stare_lit.callbacks.provenance import fingerprint, lineage
from stare_lit.cli import main as front
from stare_lit.cli.checkpoint import CheckedCheckpointIO, check_checkpoint
from stare_lit.data.collect import collect_demos
from stare_lit.data.demonstrator import DemoSettings
from stare_lit.data.demos import DemoDataModule
from stare_lit.data.trajectories import Trajectories
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny


class Bomb:
    def __reduce__(self):
        return Path("executed").touch, ()


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("executed").exists()


@pytest.fixture
def stare(monkeypatch, capfd) -> Callable[..., str]:
    """The error message of a command that must fail with exit code 2."""
    monkeypatch.setattr(front, "_close_stdin", lambda: None)
    monkeypatch.setattr(front, "_set_environment", lambda: None)

    def run(*line: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            front.main(list(line))
        error = capfd.readouterr().err
        assert exit_info.value.code == 2, error
        assert "Traceback" not in error
        (message,) = [text for text in error.splitlines() if text.startswith("stare: error: ")]
        return message

    return run


# -- Lightning checkpoints -----------------------------------------------------------------------------------------------
CONTENT = {"state_dict": {"weight": torch.arange(300.0)}, "pytorch-lightning_version": lightning.__version__, "loops": {"epoch": 3}}


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.fixture
def saved(tmp_path) -> Path:
    CheckedCheckpointIO().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_checkpoint_comes_back(saved):
    (saved.parent / ".last.ckpt.part").touch()  # of a killed run
    CheckedCheckpointIO().save_checkpoint(CONTENT, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]
    assert not differences(CheckedCheckpointIO().load_checkpoint(saved), CONTENT)


def test_an_interrupt_while_a_checkpoint_is_written_stays_one(tmp_path):
    class Interrupting:
        def __reduce__(self):
            raise KeyboardInterrupt

    CheckedCheckpointIO().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    with pytest.raises(KeyboardInterrupt):
        CheckedCheckpointIO().save_checkpoint({"tensor": torch.zeros(100_000), "last": Interrupting()}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert not differences(CheckedCheckpointIO().load_checkpoint(tmp_path / "last.ckpt"), CONTENT)


@settings(max_examples=100)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_flipped_bit_of_a_checkpoint_is_loaded(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("flip") / "last.ckpt"
    CheckedCheckpointIO().save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, int(share * len(whole))))
    with contextlib.suppress(ValueError):
        assert not differences(CheckedCheckpointIO().load_checkpoint(path), CONTENT)  # padding, which nothing reads


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "cannot be read as a checkpoint"),
        (lambda path: os.truncate(path, 0), "cannot be read as a checkpoint"),
        (lambda path: path.write_bytes(flipped(path.read_bytes(), path.read_bytes().index(torch.arange(300.0).numpy().tobytes()))), "is damaged: the checksum"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "cannot be read as a checkpoint"),
        (lambda path: torch.save({**CONTENT, "callbacks": Bomb()}, path), "cannot be read as a checkpoint"),
        (lambda path: save_file({"a": torch.zeros(3)}, path), "cannot be read as a checkpoint"),
        (lambda path: torch.save({"weight": torch.zeros(1)}, path), "is no Lightning checkpoint"),
        (lambda path: path.unlink(), "is not a file"),
    ],
    ids=["half", "empty", "flipped bit", "pickle", "pickle inside", "safetensors", "other tensors", "absent"],
)
def test_bad_checkpoints(saved, stare, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message) as error:
        check_checkpoint(saved)
    assert str(saved) in str(error.value) and "ckpt_path" in str(error.value)
    assert message in stare(*arguments("sft", "--ckpt_path", str(saved)))


def test_the_last_checkpoint_is_checked_too(stare):
    """It is found by Lightning, inside the run folder."""
    Path("runs/sft/checkpoints").mkdir(parents=True)
    Path("runs/sft/config.yaml").touch()
    Path("runs/sft/checkpoints/last.ckpt").write_bytes(pickle.dumps(Bomb()))
    assert "last.ckpt' cannot be read as a checkpoint" in stare(*arguments("sft", "--ckpt_path", "last"))


# -- data ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demos") / "data"
    collect_demos(DemoSettings("Toy-v0", image_size=16), 4, out=folder)
    return folder


def read_all(folder: Path) -> None:
    DemoDataModule("Toy-v0", folder=str(folder), image_size=16, num_episodes=4, batch_size=4, chunk_size=2).setup("fit")


FILES = ["metadata.json", "shards/000000/shard.json", "shards/000000/data/meta.json", "shards/000000/data/action.memmap",
         "shards/000000/data/observation/image.memmap", "shards/000000/episodes/seed.memmap"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "flipped bit", "pickle", "absent"])
def test_bad_trajectories(demos, damage, name):
    shutil.copytree(demos, "copy")
    file = Path("copy", name)
    content = file.read_bytes()
    if damage == "absent":
        file.unlink()
    else:
        file.write_bytes({"half": content[: len(content) // 2], "flipped bit": flipped(content, len(content) // 2), "pickle": pickle.dumps(Bomb())}[damage])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_all(Path("copy"))
    assert "copy" in str(error.value) and "again" in str(error.value) or "stare demos" in str(error.value)
    assert front._our_message(error.value)


@settings(max_examples=60)
@given(name=st.sampled_from(FILES), cut=st.booleans(), share=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
def test_fuzzed_trajectories(demos, tmp_path_factory, name, cut, share, byte):
    """Whatever is cut off or changed: the data are refused with a message of ours, or come out as they went in."""
    folder = tmp_path_factory.mktemp("fuzz") / "data"
    shutil.copytree(demos, folder)
    file = folder / name
    content = file.read_bytes()
    position = int(share * len(content))
    file.write_bytes(content[:position] if cut else content[:position] + bytes([content[position] ^ byte]) + content[position + 1 :])
    try:
        read_all(folder)
    except (ValueError, FileNotFoundError) as error:
        assert front._our_message(error), repr(error)
        return
    rows = torch.arange(len(Trajectories(demos)))
    assert (Trajectories(folder).rows(rows) == Trajectories(demos).rows(rows)).all()


# -- policies ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def policy(tmp_path) -> Path:
    tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16)).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.parametrize("damage", ["half", "flipped bit", "pickle", "foreign"])
def test_bad_policies(policy, stare, damage):
    file = policy / "model.safetensors"
    content = file.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(3)}, file)
    else:
        file.write_bytes({"half": content[:2000], "flipped bit": flipped(content, len(content) - 10), "pickle": pickle.dumps(Bomb())}[damage])
    with pytest.raises(ValueError, match=r"path=.*policy.*checksum of model\.safetensors does not fit"):
        VLAPolicy.from_pretrained(policy)
    assert "checksum of model.safetensors" in stare("eval", "--checkpoint", str(policy), "--task", "Toy-v0", "--num_episodes=2")


@pytest.mark.parametrize("content", ["{", "[]", '{"fingerprint": 3}', b"\xff\xfe\x00"], ids=["half", "list", "lacking", "bytes"])
def test_a_damaged_record_of_origin(policy, content):
    (policy / "provenance.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"provenance.json is damaged .*copy the whole folder again"):
        lineage(policy)
    assert len(fingerprint(policy)) == 64


@pytest.mark.parametrize("content", ["{", "[]", '{"command": 3}'])
def test_a_damaged_record_of_a_step(stare, content):
    phase = {"name": "sft", "config": arguments("sft")[2]}
    Path("ipi.yaml").write_text(json.dumps({"phases": [phase], "root": "runs/ipi", "task": "Toy-v0"}))
    Path("runs/ipi").mkdir(parents=True)
    Path("runs/ipi/sft.json").write_text(content)
    assert "runs/ipi/sft.json is damaged" in stare("ipi", "--config", "ipi.yaml")


# -- disks ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_disk_full_while_collecting(small_disk, stare):
    message = stare("demos", "--task=Toy-v0", "--num_episodes=2000", "--image_size=16", f"--out={small_disk}/demos")
    assert "no room for" in message and str(small_disk) in message and "make room" in message
    Trajectories(small_disk / "demos", verify=True)  # what was written before is whole


def test_disk_full_while_training(small_disk, stare):
    (small_disk / "filler").write_bytes(bytes(1_300_000))
    message = stare(*arguments("sft", run_dir=f"{small_disk}/run"))
    assert "make room" in message  # which file it was is not known where a library closed it with bytes left to write


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(small_disk):
    CheckedCheckpointIO().save_checkpoint(CONTENT, small_disk / "last.ckpt")
    with pytest.raises(OSError, match=r"last.ckpt cannot be written .*make room"):
        CheckedCheckpointIO().save_checkpoint({**CONTENT, "state_dict": {"weight": torch.zeros(600_000)}}, small_disk / "last.ckpt")
    assert [path.name for path in small_disk.iterdir()] == ["last.ckpt"]
    check_checkpoint(small_disk / "last.ckpt")


def test_a_file_where_a_folder_is_wanted(stare):
    Path("runs").touch()
    assert "runs" in stare(*arguments("sft", run_dir="runs/sft"))


def test_read_only_folder(stare, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # whoever runs the tests may write everywhere
    assert "Permission denied: runs/sft; make room or choose a folder that can be written to" in stare(*arguments("sft"))
