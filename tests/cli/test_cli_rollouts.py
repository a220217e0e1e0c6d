"""``stare rollouts`` as a function: writes where the preference phase will look, says what it found, and does nothing twice."""

import shlex
from types import SimpleNamespace

import pytest
import torch
import yaml

from stare_lit.cli.eval import evaluate_checkpoint
from stare_lit.cli.rollouts import rollouts
from stare_lit.data.offline import RolloutSettings, rollout_folder, select_episodes
from stare_lit.data.trajectories import Trajectories
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny


def test_samples_once_and_reports(tmp_path, capsys):
    torch.manual_seed(0)
    policy = tiny(4, image_size=32, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8)
    policy.save_pretrained(tmp_path / "policy")
    settings = RolloutSettings(num_states=2, num_samples=2, num_envs=4)
    for _ in range(2):
        rollouts(tmp_path / "policy", task="Toy-v0", folder=tmp_path, settings=settings)
    report = capsys.readouterr().out
    assert report.count("4 from 2 initial states, success 0.000") == 2 and "2 never" in report
    stored = Trajectories(rollout_folder(tmp_path, "Toy-v0", policy))
    assert stored.num_episodes == 4 and len(stored.infos) == 1


def test_weights_as_saved(tmp_path):
    """A bfloat16 policy with proprioception acts, and its rollouts are kept apart from those of other numbers."""
    torch.manual_seed(0)
    policy = tiny(4, image_size=32, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8)
    policy.save_pretrained(tmp_path / "policy", "bfloat16")
    settings = RolloutSettings(num_states=1, num_samples=2, num_envs=2)
    rollouts(tmp_path / "policy", task="Toy-v0", folder=tmp_path, settings=settings, dtype="auto")
    as_saved = VLAPolicy.from_pretrained(tmp_path / "policy", None)
    assert as_saved.language_model.dtype == torch.bfloat16
    assert Trajectories(rollout_folder(tmp_path, "Toy-v0", as_saved)).num_episodes == 2
    assert not rollout_folder(tmp_path, "Toy-v0", VLAPolicy.from_pretrained(tmp_path / "policy")).exists()
    result = evaluate_checkpoint(tmp_path / "policy", "Toy-v0", 2, "validation", dtype="auto")
    assert len(result.seeds) == 2


def next_command(report: str) -> list[str]:
    return shlex.split(next(line for line in report.splitlines() if line.startswith("next ")))[1:]


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_the_next_command_trains_on_these_rollouts(dtype, tmp_path, capsys, assert_parses):
    """It is parsed as the command line parses it, and asked which episodes of which policy it would train on: none is missing."""
    torch.manual_seed(0)
    policy = tiny(4, image_size=32, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8)
    policy.save_pretrained(tmp_path / "the policy", "bfloat16")
    settings = RolloutSettings(num_states=2, num_samples=3, first_seed=600_000, temperature=0.7, num_envs=4)
    folder = tmp_path / "my rollouts"
    rollouts(tmp_path / "the policy", task="Toy-v0", folder=folder, image_size=16, dtype=dtype, settings=settings)
    words = next_command(capsys.readouterr().out)
    assert words[:4] == ["stare", "fit", "--config", "configs/toy/sta_tpo.yaml"]
    assert_parses(words[1:])
    config = yaml.safe_load(capsys.readouterr().out)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    asked = RolloutSettings(**data["rollouts"])
    assert asked == settings and data["image_size"] == 16 and model["temperature"] == 0.7
    entering = VLAPolicy.from_pretrained(**model["policy"]["init_args"])
    target = rollout_folder(data["folder"], data["task"], entering)
    assert len(select_episodes(Trajectories(target), asked)) == 6


@pytest.mark.parametrize(
    ("task", "towers", "config"),
    [("Toy-v0", True, "toy/sta_tpo"), ("StackCube-v1", True, "sta_tpo"), ("StackCube-v1", False, "state/sta_tpo")],
)
def test_the_next_command_fits_the_task_and_the_policy(task, towers, config, tmp_path, assert_parses, monkeypatch, capsys):
    policy = tiny(48, image_size=32, hidden_size=32, num_layers=1, num_bins=8, **({} if towers else {"observation": "state"}))
    policy.save_pretrained(tmp_path / "policy")
    found = SimpleNamespace(episodes={"success": torch.zeros(512, dtype=torch.bool)})
    monkeypatch.setattr("stare_lit.cli.rollouts.collect_rollouts", lambda *_, **__: found)
    monkeypatch.setattr("stare_lit.cli.rollouts.select_episodes", lambda *_: torch.arange(512))
    rollouts(tmp_path / "policy", task=task)
    words = next_command(capsys.readouterr().out)
    assert words == [
        "stare", "fit", "--config", f"configs/{config}.yaml", f"--model.policy.path={tmp_path / 'policy'}", f"--data.task={task}",
        "--data.folder=data/rollouts", "--data.rollouts.num_states=64", "--data.rollouts.num_samples=8",
    ]  # fmt: skip
    assert_parses(words[1:])
