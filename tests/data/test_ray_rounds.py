"""Rounds from two Ray actors on this machine: their own seeds, the newest weights, and a clear word where Ray is missing."""

from importlib.util import find_spec

import pytest
import torch
from lightning import Trainer

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.data import ray_rounds
from stare_lit.data.ray_rounds import RayRounds, RaySettings
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.models.vla.presets import tiny


class Kept(RolloutDataModule):
    """Keeps its rounds, and what the policy of that moment says of them."""

    def collect(self):
        batch = super().collect()
        with torch.no_grad():
            said = self.trainer.lightning_module.policy.evaluate_actions(batch)["log_probs"]
        self.rounds = [*getattr(self, "rounds", []), (batch.clone(), said)]
        return batch


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install 'stare-lit[ray]')")
def test_two_actors_sample_rounds_of_the_toy(tmp_path):
    torch.manual_seed(0)
    policy = tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16))
    module = StaPPOModule(policy, num_epochs=1, learning_rate=1e-2, value_warmup_rounds=0, lora=LoraSettings(rank=2))
    data = Kept("Toy-v0", num_envs=4, num_workers=1, decisions_per_env=3, max_episode_steps=5, ray=RaySettings(num_collectors=2))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=2, **quiet)
    trainer.fit(module, data)
    assert len(data.rounds) == data.round == 2
    for batch, said in data.rounds:  # sampled by the weights of that moment
        assert batch.batch_size == (4, 3)
        torch.testing.assert_close(batch[keys.LOG_PROBS], said, atol=1e-5, rtol=0.0)
    assert not torch.allclose(*(said for _, said in data.rounds))
    seeds = torch.stack([batch[keys.EPISODE_SEED][:, 0].flatten() for batch, _ in data.rounds])
    assert seeds.unique().numel() == seeds.numel()  # no two environments of any worker or round start alike
    assert trainer.callback_metrics["train/approx_kl"].isfinite()


def test_a_missing_ray_is_told(monkeypatch):
    monkeypatch.setattr(ray_rounds, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'stare-lit\[ray\]'"):
        RayRounds(RaySettings(), None, torch.nn.Linear(1, 1), temperature=1.0, mixed=None, frames=4)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"num_envs=3: must be a multiple of ray.num_collectors=2"):
        RolloutDataModule("Toy-v0", num_envs=3, ray=RaySettings(num_collectors=2))
    with pytest.raises(ValueError, match="set gpus above 0"):
        RaySettings(device="cuda")
