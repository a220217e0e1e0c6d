"""`stare eval`: how many episodes, the benchmark of a Bridge task as one preset, and the two goals of a scene under swapped instructions."""

import json
import re
import shlex
from pathlib import Path

import pytest

from stare_lit.cli import eval as command
from stare_lit.envs.robots import OFFICIAL_LAYOUTS
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.models.vla.presets import tiny

ROOT = Path(__file__).parents[2]
CARROT = "PutCarrotOnPlateInScene-v1"
OFFICIAL = {"picture": "official", "visuals": "exact"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Policies of the toy, and of the WidowX from images and from the state."""
    folder = tmp_path_factory.mktemp("policies")
    common = {"chunk_size": 1, "hidden_size": 32, "num_layers": 1, "num_bins": 8}
    tiny(4, image_size=32, **common).save_pretrained(folder / "toy")
    tiny(22, image_size=32, **common).save_pretrained(folder / "image")
    tiny(43, observation="state", **common).save_pretrained(folder / "state")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize("num", [0, -3])
def test_no_episodes_are_refused(checkpoints, num):
    with pytest.raises(ValueError, match=f"num_episodes={num}: give at least 1, or leave it out for 100"):
        command.eval(checkpoints["toy"], "Toy-v0", num_episodes=num)


class Begun(Exception):
    """Work has begun."""


@pytest.fixture
def begun(monkeypatch):
    """What environment and seeds an evaluation begins with, instead of it."""
    seen = {}

    def make_env(task, num_envs, **settings):
        seen.update(settings, task=task, num_envs=num_envs)
        raise Begun

    monkeypatch.setattr(command, "make_env", make_env)
    return seen


@pytest.mark.parametrize("task", sorted(OFFICIAL_LAYOUTS))
def test_the_official_split_is_all_layouts_seen_as_the_benchmark_sees_them(checkpoints, begun, task):
    with pytest.raises(Begun):
        command.eval(checkpoints["image"], task, split="official", num_envs=1000)
    assert begun["num_envs"] == OFFICIAL_LAYOUTS[task] and OFFICIAL.items() <= begun.items()
    assert "max_episode_steps" not in begun and begun["terminate_on_success"] is False


@pytest.mark.parametrize(
    ("policy", "split", "asked", "view"),
    [
        ("image", "official", {"picture": "squeezed"}, {"picture": "squeezed", "visuals": "exact"}),
        ("image", "official", {"picture": "squeezed", "visuals": "auto"}, {"picture": "squeezed", "visuals": "auto"}),
        ("image", "test", None, {}),
        ("state", "official", None, {}),
    ],
)
def test_what_is_asked_for_rules_and_a_policy_of_the_state_sees_nothing(checkpoints, begun, policy, split, asked, view):
    with pytest.raises(Begun):
        command.eval(checkpoints[policy], CARROT, num_episodes=2, split=split, environment=asked)
    assert {name: begun[name] for name in OFFICIAL if name in begun} == view


def test_the_command_to_run_next_measures_the_same(checkpoints, capsys):
    asked = {"temperature": 0.5, "environment": {"max_episode_steps": 2}}
    command.eval(checkpoints["toy"], "Toy-v0", num_episodes=2, **asked)
    printed = capsys.readouterr().out
    (args,) = [shlex.split(part) for part in re.findall(r"next +(stare eval .*)", printed.replace("\n", " "))]
    assert {"--split", "test", "--temperature=0.5", '--environment={"max_episode_steps": 2}'} <= set(args)
    assert not [each for each in args if each.startswith(("--num_envs", "--device", "--dtype"))]  # as they are by default


def test_the_report_says_what_was_seen(checkpoints, simulated, tmp_path, capsys):
    output = tmp_path / "report.json"
    few = {"num_episodes": 1, "num_workers": 0, "environment": {"max_episode_steps": 1}}
    command.eval(checkpoints["image"], simulated(CARROT), split="official", output=str(output), **few)
    episodes = json.loads(output.read_text())["results"]["policy"]["episodes"]
    assert episodes["seeds"] == [SEED_RANGES["official"][0]] and OFFICIAL.items() <= episodes["environment"].items()
    assert "policy: picture official, visuals exact" in capsys.readouterr().out


def test_success_on_the_scenes_goal_and_on_the_one_that_was_told_side_by_side(checkpoints, tmp_path, capsys):
    output = tmp_path / "report.json"
    swapped = str(ROOT / "configs/language/swapped.yaml")
    command.eval(checkpoints["toy"], "Toy-v0", num_episodes=3, num_envs=3, perturbation=swapped, output=str(output))
    results, text = json.loads(output.read_text())["results"], capsys.readouterr().out
    assert results["swapped"]["told_success"]["trials"] == 3 and "told_success" not in results["in distribution"]
    assert "told goal [95 %]" in text and "success_once [95 %]" in text
