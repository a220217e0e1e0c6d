"""The preference phase on the toy: the reference point, the gradients, and that it moves the right way."""

import math
from collections import OrderedDict

import pytest
import torch
from lightning import Trainer
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, adapter_off, add_adapter, has_adapter, merge_adapter
from stare_lit.algorithms.sta_tpo import StaTPOModule
from stare_lit.data.offline import RolloutSettings, collect_rollouts, rollout_folder
from stare_lit.data.pairs import PairRule
from stare_lit.data.preferences import PreferenceDataModule
from stare_lit.envs.factory import make_env
from stare_lit.experts.noise import disturbed
from stare_lit.experts.toy import ToyExpert
from stare_lit.models.vla.presets import tiny

ROLLOUTS = RolloutSettings(num_states=4, num_samples=4, num_envs=8)


def small_policy():
    torch.manual_seed(0)
    return tiny(4, image_size=32, chunk_size=1, hidden_size=32, num_layers=1, num_bins=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rollouts in the name of ``small_policy`` that reach all stages: a noisy expert chose the tokens."""
    root, policy, expert = tmp_path_factory.mktemp("rollouts"), small_policy(), ToyExpert()
    env = make_env("Toy-v0", ROLLOUTS.num_envs, chunk_size=1, image_size=32)
    generators = [torch.Generator().manual_seed(seed) for seed in range(ROLLOUTS.num_envs)]

    def act(tensordict, *, temperature):
        tokens = policy.encode_actions(disturbed(expert.act(env.base_env), 1.0, generators, (1.0,) * 7))[:, None]
        tensordict.set(keys.ACTION_TOKENS, tokens).set(keys.ACTION_CHUNK, policy.decode_actions(tokens))
        tensordict.set(keys.INSTRUCTION_TOKENS, policy.prompts([*tensordict[keys.INSTRUCTION]]))
        return tensordict.set(keys.LOG_PROBS, policy.evaluate_actions(tensordict, temperature=temperature)["log_probs"])

    policy.act = act
    collect_rollouts(policy, rollout_folder(root, "Toy-v0", policy), ROLLOUTS, task="Toy-v0", image_size=32, env_maker=lambda: env)
    return str(root)


def data(folder, **settings) -> PreferenceDataModule:
    settings = {"rollouts": ROLLOUTS, "rule": PairRule(min_gap=0.0), "validation_fraction": 0.25, **settings}
    return PreferenceDataModule("Toy-v0", image_size=32, folder=folder, **settings)


def trainer(tmp_path, **settings) -> Trainer:
    settings = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, **settings}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **settings)


def attach(module: StaTPOModule, datamodule: PreferenceDataModule, tmp_path) -> None:
    """Everything that fit does before its first step."""
    run = trainer(tmp_path, max_epochs=0, num_sanity_val_steps=0)
    run.fit(module, datamodule)


def test_first_loss_is_log_2_without_cost(folder, tmp_path):
    module, datamodule = StaTPOModule(small_policy(), lmbda=0.0), data(folder)
    attach(module, datamodule, tmp_path)
    batch = next(iter(datamodule.train_dataloader()))
    ratio = module._log_prob(batch["decisions"]) - batch["decisions", "reference_log_prob"]
    torch.testing.assert_close(ratio, torch.zeros_like(ratio), atol=2e-5, rtol=0)
    assert all(len(each["decision"]) <= datamodule.decisions_per_batch for each in datamodule.train_dataloader())  # what the memory plan is told
    assert module.loss(batch).mean.item() == pytest.approx(math.log(2), abs=1e-5)


def test_first_log_ratio_is_0_with_a_fresh_adapter(folder, tmp_path):
    module, datamodule = StaTPOModule(small_policy(), lmbda=0.0, lora=LoraSettings(rank=2)), data(folder)
    attach(module, datamodule, tmp_path)
    assert has_adapter(module.policy)
    batch = next(iter(datamodule.train_dataloader()))
    assert module.loss(batch).mean.item() == pytest.approx(math.log(2), abs=1e-5)


def test_micro_batches_give_identical_gradients(folder, tmp_path):
    module, datamodule = StaTPOModule(small_policy(), lmbda=0.5), data(folder)
    attach(module, datamodule, tmp_path)
    batch = next(iter(datamodule.train_dataloader()))
    gradients = []
    for size in (None, 7):
        module.micro_batch_size = size
        module.zero_grad()
        module.loss(batch).mean.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_training_prefers_the_winners_and_reports_it(folder, tmp_path):
    run = trainer(tmp_path, max_epochs=30, limit_train_batches=1.0)
    module = StaTPOModule(small_policy(), lmbda=0.0, learning_rate=1e-3, warmup_steps=2)
    run.fit(module, data(folder, batch_size=64))
    metrics = run.callback_metrics
    assert metrics["train/loss"] < 0.6
    assert metrics["train/accuracy"] > 0.8
    assert metrics["train/gap"] > 0
    assert {"train/chosen", "train/rejected", "train/stage_pairs/reach", "val/loss", "val/accuracy"} <= metrics.keys()


def test_rpo_alpha_keeps_what_is_preferred_likely(folder, tmp_path):
    chosen = []
    for alpha in (0.0, 1.0):
        run = trainer(tmp_path / str(alpha), max_epochs=10, limit_train_batches=1.0)
        run.fit(StaTPOModule(small_policy(), lmbda=0.0, rpo_alpha=alpha, learning_rate=1e-3, warmup_steps=2), data(folder, batch_size=64))
        chosen.append(run.callback_metrics["train/chosen"])
    assert chosen[1] > chosen[0] + 0.1 and chosen[1] > 0


def test_adapter_training_leaves_the_reference_untouched(folder, tmp_path):
    policy = small_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    module, datamodule = StaTPOModule(policy, learning_rate=1e-2, lora=LoraSettings(rank=2)), data(folder)
    trainer(tmp_path, max_epochs=3).fit(module, datamodule)
    batch = next(iter(datamodule.train_dataloader()))
    decisions, reference = batch["decisions"], batch["decisions", "reference_log_prob"]
    with adapter_off(policy), torch.no_grad():
        torch.testing.assert_close(module._log_prob(decisions), reference, atol=2e-5, rtol=0)
    trained = module._log_prob(decisions).detach()
    assert (trained - reference).abs().max() > 1e-3
    merged = module.merged_policy()
    assert merged.state_dict().keys() == before.keys()
    module.policy = merged
    torch.testing.assert_close(module._log_prob(decisions).detach(), trained, atol=1e-4, rtol=1e-4)


def test_lmbda_without_stage_cost_is_refused_before_any_work(tmp_path):
    module, datamodule = StaTPOModule(small_policy(), lmbda=1.0), data(str(tmp_path / "empty"), rule=PairRule(use_cost=False))
    with pytest.raises(ValueError, match="lmbda=1.0: there is no stage cost to weigh"):
        attach(module, datamodule, tmp_path)
    assert not (tmp_path / "empty").exists()
    batch = TensorDict({"preferred": torch.ones(1, 1)}, batch_size=[])
    with pytest.raises(ValueError, match="lmbda=1.0: the pairs carry no stage cost"):
        module.loss(batch)


@pytest.mark.parametrize(("name", "value"), [("beta", 0.0), ("lmbda", -1.0), ("rpo_alpha", -1.0), ("temperature", 0.0), ("micro_batch_size", 0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        StaTPOModule(torch.nn.Linear(1, 1), **{name: value})


def test_merging_keeps_what_the_policy_does_and_a_second_adapter_is_refused():
    layer = torch.nn.Sequential(OrderedDict(body=torch.nn.Linear(3, 4), relu=torch.nn.ReLU(), value_head=torch.nn.Linear(4, 2)))
    x = torch.randn(5, 3)
    names = list(layer.state_dict())
    add_adapter(layer, LoraSettings(rank=2))
    assert type(layer.value_head) is torch.nn.Linear
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(layer, LoraSettings(rank=2))
    for parameter in layer.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    expected = layer(x)
    merge_adapter(layer)
    assert list(layer.state_dict()) == names and all(p.requires_grad for p in layer.parameters())
    torch.testing.assert_close(layer(x), expected)
