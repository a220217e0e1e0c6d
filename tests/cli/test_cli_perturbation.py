"""`stare eval --perturbation`: one table and one report, in distribution first; what cannot be done is told before any work."""

import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import auto_cli

from stare_lit.cli import eval as command
from stare_lit.models.vla.presets import tiny

ROOT = Path(__file__).parents[2]
TOY = {"task": "Toy-v0", "num_episodes": 4, "num_envs": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    tiny(4, image_size=32, chunk_size=4, hidden_size=48, num_layers=1, num_bins=16).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_all_that_fit_side_by_side(checkpoint, tmp_path, capsys):
    output = tmp_path / "report.json"
    command.eval(checkpoint, **TOY, perturbation="all", output=str(output))
    stored, text = json.loads(output.read_text()), capsys.readouterr().out
    fitting = ["action_noise", "distractors", "instruction", "object_colour"]
    assert list(stored["results"]) == ["in distribution", *fitting] and list(stored["paired_gains"]) == fitting
    assert len({tuple(row["episodes"]["seeds"]) for row in stored["results"].values()}) == 1
    assert all(row["success_once"]["trials"] == 4 for row in stored["results"].values())
    assert stored["config"]["perturbations"]["action_noise"]["action_noise"] == 0.3
    assert set(stored["config"]["left_out"]) == {"camera", "lighting", "object_size", "robot_pose", "table"}
    assert all(name in text for name in ("condition", "in distribution", *fitting, "left out  camera: ", "paired gain"))


def test_some_by_name_and_path(checkpoint, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "_evaluate", lambda policy, name, *_, environment, **__: seen.append((name, environment["perturbation"].changes)))
    mine = tmp_path / "dark.yaml"
    mine.write_text("light: [0.1, 0.1, 0.1]\n")
    asked = command.read_perturbations(["action_noise", str(mine)])
    command.evaluate_perturbed(checkpoint, "Toy-v0", 2, "validation", asked, temperature=0.0, num_envs=2, num_workers=None)
    assert seen == [("in distribution", set()), ("action_noise", {"action_noise"}), ("dark", {"light"})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation": "camra"}, "perturbation='camra'.*camera"),
        ({"perturbation": "robot_pose"}, "Toy-v0 has no joint_noise"),
        ({"perturbation": "all", "video": "film.mp4"}, "cannot go together with compare or video"),
        ({"perturbation": "all", "task": "Toy-v9"}, "Toy-v9"),
        ({"perturbation": ["camera", "camera"]}, "must differ"),
        ({"perturbation": "long"}, "shorten it"),
        ({"perturbation": []}, "no files"),
    ],
)
def test_refusals_come_before_any_work(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "make_env", lambda *_, **__: pytest.fail("work has begun"))
    if arguments["perturbation"] == "long":
        (tmp_path / "long.yaml").write_text(f"instructions:\n  Toy-v0: [{'put it there ' * 10}, on the blue one]\n")
        arguments = {"perturbation": str(tmp_path / "long.yaml")}
    with pytest.raises(ValueError, match=message):
        command.eval(checkpoint, **TOY | arguments)


def test_away_from_the_repository(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run from the folder that holds configs/"):
        command.eval(checkpoint, **TOY, perturbation="all")


@pytest.mark.parametrize("value", ["all", "camera", "[camera, lighting]", "configs/perturbations/camera.yaml", '["my own.yaml", camera]'])
def test_values_on_the_command_line(checkpoint, capsys, value):
    with pytest.raises(SystemExit):
        auto_cli(command.eval, args=["--checkpoint", checkpoint, "--perturbation", value, "--print_config"], as_positional=False)
    assert yaml.safe_load(capsys.readouterr().out)["perturbation"] == yaml.safe_load(value)
