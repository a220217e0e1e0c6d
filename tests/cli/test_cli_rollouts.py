"""``stare rollouts`` as a function: writes where the preference phase will look, says what it found, and does nothing twice."""

import torch

from stare_lit.cli.rollouts import rollouts
from stare_lit.data.offline import RolloutSettings, rollout_folder
from stare_lit.data.trajectories import Trajectories
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
