"""``stare demos`` through the front door."""

from pathlib import Path

import pytest

from stare_lit.cli.main import main
from stare_lit.data.trajectories import Trajectories


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["demos", *arguments])
    return exit_.value.code


def test_collects_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (3, 5):
        assert run("--task", "Toy-v0", "--num_episodes", str(number), "--out", str(tmp_path / "a"), "--image_size", "16") == 0
        assert Trajectories(tmp_path / "a").num_episodes == number
    assert "the expert succeeded on 5 of 5 seeds" in capsys.readouterr().out


def test_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"task: Toy-v0\nnum_episodes: 2\nout: {tmp_path / 'a'}\nimage_size: 16\n")
    assert run("--config", str(tmp_path / "c.yaml")) == 0
    assert Trajectories(tmp_path / "a").num_episodes == 2


def test_wrong_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("--task", "Cube", "--out", str(tmp_path)) == 2
    assert "task='Cube' is unknown; choose one of" in capsys.readouterr().err


def test_settings_that_would_be_ignored_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("--task", "Toy-v0", "--out", str(tmp_path), "--replay", "states") == 2
    assert "give h5 as well" in capsys.readouterr().err
    assert run("--h5", "x.h5", "--out", str(tmp_path), "--action_noise", "0.1") == 2
    assert "action_noise have no meaning" in capsys.readouterr().err
    assert run("--h5", "x.h5", "--task", "PushCube-v1", "--out", str(tmp_path), "--disguised", "0.5") == 2
    assert "disguised have no meaning" in capsys.readouterr().err
