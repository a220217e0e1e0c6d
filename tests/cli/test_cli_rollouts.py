"""``stare rollouts`` as a function: writes where the preference phase will look, says what it found, and does nothing twice."""

import torch

from stare_lit.cli.eval import evaluate_checkpoint
from stare_lit.cli.rollouts import rollouts
from stare_lit.data.offline import RolloutSettings, rollout_folder
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
