"""Statistics of the state are taken from the training data, once."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.callbacks import StateStatistics
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.models.vla.presets import tiny


def fit(tmp_path, policy, epochs=1):
    module, data = StaPPOModule(policy, num_epochs=1, learning_rate=1e-4), RolloutDataModule("Toy-v0", num_envs=4, decisions_per_env=6)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[StateStatistics()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return data


def test_a_first_round_is_measured_and_counted(tmp_path):
    torch.manual_seed(0)
    policy = tiny(11, observation="state", normalize_state=True, hidden_size=32, num_layers=1, num_bins=8, chunk_size=2)
    data = fit(tmp_path, policy)
    projector = policy.state_projector
    assert projector.calibrated and (projector.std > 0).all() and projector.std.max() > 0.02
    assert data.round == 2 and data.env_steps > 4 * 6  # the one measured, and the one trained on
    mean = projector.mean.clone()
    assert fit(tmp_path, policy).round == 1  # it has its statistics
    assert torch.equal(policy.state_projector.mean, mean)


def test_what_fills_up_an_episode_is_no_state():
    policy = tiny(3, observation="state", normalize_state=True, hidden_size=32, num_layers=1, num_bins=8)
    states, mask = torch.randn(4, 5, 3), torch.arange(5) < torch.tensor([1, 5, 2, 3])[:, None]
    states[~mask] = 0.0
    batch = TensorDict({keys.STATE: states, "mask": mask}, batch_size=[4, 5])
    trainer = SimpleNamespace(world_size=1, datamodule=SimpleNamespace(train_dataloader=lambda: [batch]))
    StateStatistics().on_fit_start(trainer, SimpleNamespace(policy=policy))
    torch.testing.assert_close(policy.state_projector.mean, states[mask].mean(0))
    torch.testing.assert_close(policy.state_projector.std, states[mask].std(0))


def test_a_policy_that_does_not_normalise_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="normalize_state"):
        fit(tmp_path, tiny(11, observation="state", hidden_size=32, num_layers=1, num_bins=8))
