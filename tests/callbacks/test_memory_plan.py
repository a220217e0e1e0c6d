"""The plan is printed before training, and a run that cannot fit does not start."""

from types import SimpleNamespace

import pytest
import torch

from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.sft import SFTModule
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.algorithms.sta_tpo import StaTPOModule
from stare_lit.callbacks.memory_plan import MemoryPlan
from stare_lit.models.vla.presets import tiny


def policy():
    return tiny(0, image_size=32, hidden_size=32, num_layers=1, decoding="autoregressive")


def trainer(**data):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(precision="32-true", is_global_zero=True, world_size=1, strategy=strategy, datamodule=SimpleNamespace(**data))


def test_batch_and_environments_are_found(capsys):
    module = StaPPOModule(policy(), minibatch_size=10, lora=LoraSettings(rank=2))
    module.configure_model()
    plan = MemoryPlan().plan(trainer(num_envs=4), module)
    assert plan.cache > 0 and plan.gradients < plan.weights
    twice = MemoryPlan(batch_size=20).plan(trainer(num_envs=4), module)
    assert twice.activations == 2 * plan.activations
    MemoryPlan().on_fit_start(trainer(batch_size=8), SFTModule(policy()))
    assert "activations" in capsys.readouterr().out


def test_a_run_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match=r"GiB are needed on each device, which has 0\.5; lower the \(micro-\)batch size"):
        MemoryPlan(capacity=0.5).on_fit_start(trainer(batch_size=8), SFTModule(policy()))


def test_an_unknown_batch_is_asked_for():
    with pytest.raises(ValueError, match="give the callback a batch_size"):
        MemoryPlan().plan(trainer(), SFTModule(policy()))
    with pytest.raises(ValueError, match="micro_batch_size"):  # its data counts pairs of trajectories
        MemoryPlan().plan(trainer(batch_size=8), StaTPOModule(policy()))
    told, given = MemoryPlan().plan(trainer(batch_size=8, decisions_per_batch=48), StaTPOModule(policy())), MemoryPlan(batch_size=48)
    assert told.activations == given.plan(trainer(), StaTPOModule(policy())).activations


def test_micro_batches_checkpointing_and_the_state_variant():
    whole, split = (StaPPOModule(policy(), minibatch_size=10, micro_batch_size=size) for size in (None, 2))
    plans = [MemoryPlan().plan(trainer(num_envs=4), module) for module in (whole, split)]
    assert plans[0].activations == 5 * plans[1].activations
    again = StaPPOModule(tiny(0, image_size=32, hidden_size=32, num_layers=6), minibatch_size=10, checkpointing=True)
    kept = StaPPOModule(tiny(0, image_size=32, hidden_size=32, num_layers=6), minibatch_size=10)
    assert MemoryPlan().plan(trainer(), again).activations < 0.7 * MemoryPlan().plan(trainer(), kept).activations
    assert MemoryPlan().plan(trainer(batch_size=8), SFTModule(tiny(4, observation="state", hidden_size=32, num_layers=1))).activations > 0


def test_a_trunk_whose_activations_are_not_known_is_let_through(capsys):
    module = SimpleNamespace(policy=SimpleNamespace(config=SimpleNamespace(backbone={"model_type": "idefics3"})))
    MemoryPlan().on_fit_start(trainer(), module)
    assert "not planned: the activations of this trunk (idefics3)" in capsys.readouterr().out
