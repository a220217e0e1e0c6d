"""The imitation phase on a handful of toy decisions: it learns them, and refuses what does not fit."""

from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, has_adapter
from stare_lit.algorithms.sft import SFTModule
from stare_lit.callbacks.non_finite import NonFiniteError, NonFiniteGuard
from stare_lit.data.demos import DemoDataModule
from stare_lit.models.vla.presets import tiny

CHUNK = 2


def policy(**settings):
    torch.manual_seed(0)
    return tiny(4, **{"image_size": 32, "chunk_size": CHUNK, "hidden_size": 32, "num_layers": 1, "num_bins": 8, "channels": (8, 16, 32), **settings})


class EightRows(LightningDataModule):
    """The same eight decisions of a demonstration again and again."""

    def __init__(self, folder):
        super().__init__()
        demos = DemoDataModule("Toy-v0", folder=str(folder), num_episodes=2, batch_size=8, chunk_size=CHUNK, image_size=32)
        demos.prepare_data()
        demos.setup()
        self.action_statistics, self.environment = demos.action_statistics, demos.environment
        self.batch = demos.on_before_batch_transfer(next(iter(demos.train_dataloader())), 0)

    def train_dataloader(self):
        return DataLoader([self.batch], batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> EightRows:
    return EightRows(tmp_path_factory.mktemp("demos"))


def trainer(tmp_path, max_steps=1, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=max_steps, **quiet, **settings)


@pytest.mark.parametrize("settings", [{}, {"classes": "vocabulary"}], ids=["bins", "vocabulary"])
def test_eight_decisions_are_learned_by_heart(rows, tmp_path, settings):
    run, module = trainer(tmp_path, 220), SFTModule(policy(), learning_rate=5e-3, warmup_steps=10, **settings)
    run.fit(module, rows)
    assert run.callback_metrics["train/token_accuracy"] > 0.95
    tokens = module.policy.act(rows.batch.clone(), temperature=0.0)[keys.ACTION_TOKENS]
    right = (tokens == module.policy.encode_actions(rows.batch[keys.ACTION_CHUNK]))[~rows.batch[keys.ACTION_IS_PAD]]
    assert right.float().mean() > 0.95


def test_value_head_gets_no_gradient_and_statistics_are_those_of_the_data(rows, tmp_path):
    module = SFTModule(policy(), warmup_steps=0, schedule="constant")
    before = {name: value.clone() for name, value in module.policy.state_dict().items()}
    trainer(tmp_path).fit(module, rows)
    after = module.policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("value_head"))
    assert not torch.equal(before["language_model.lm_head.weight"], after["language_model.lm_head.weight"])
    reference = policy()
    reference.set_action_statistics(rows.action_statistics)
    assert all(torch.equal(value, after[f"actions.{name}"]) for name, value in reference.actions.state_dict().items())


def test_policy_may_keep_its_statistics(rows, tmp_path):
    module = SFTModule(policy(), action_statistics="policy")
    before = {name: value.clone() for name, value in module.policy.actions.state_dict().items()}
    trainer(tmp_path).fit(module, rows)
    assert all(torch.equal(value, before[name]) for name, value in module.policy.actions.state_dict().items())


def test_adapter_is_trained_alone_and_merged_for_saving(rows, tmp_path):
    module = SFTModule(policy(), lora=LoraSettings(rank=2))
    names = set(module.policy.state_dict())
    trainer(tmp_path).fit(module, rows)
    assert has_adapter(module.policy)
    assert all("lora_" in name for name, parameter in module.policy.named_parameters() if parameter.requires_grad)
    assert set(module.merged_policy().state_dict()) == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_size": 3}, "data.chunk_size=2 but the policy has 3"),
        ({"observation": "state"}, "data.observation='image' but the policy has 'state'"),
        ({"cameras": ("base_camera", "hand_camera")}, r"data.cameras=\[\] but the policy has \['base_camera', 'hand_camera'\]"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(rows, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(SFTModule(policy(**settings)), rows)


def test_the_command_line_refuses_before_it_makes_demonstrations(tmp_path, monkeypatch):
    from stare_lit.cli.lightning import run

    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[2] / "configs" / "toy" / "sft.yaml"
    with pytest.raises(ValueError, match="data.chunk_size=7 but the policy has"):
        run(["fit", "--config", str(config), "--data.chunk_size=7"])
    assert not (tmp_path / "data").exists()


def test_bad_learning_rate_is_refused():
    with pytest.raises(ValueError, match="learning_rate=0"):
        SFTModule(policy(), learning_rate=0.0)


def test_nan_stops_before_the_step_and_names_the_batch(rows, tmp_path):
    module = SFTModule(policy(), schedule="constant")
    logits, before = module.policy.logits, module.policy.projector.weight.detach().clone()
    module.policy.logits = lambda *args, **kwargs: logits(*args, **kwargs) * float("nan")
    with pytest.raises(NonFiniteError, match="the loss is nan in epoch 0, batch 0"):
        trainer(tmp_path, callbacks=[NonFiniteGuard()]).fit(module, rows)
    assert torch.equal(module.policy.projector.weight, before)


@pytest.mark.parametrize("classes", ["bins", "vocabulary"])
def test_micro_batches_give_identical_gradients(rows, tmp_path, classes):
    gradients, logged = [], []
    for size in (None, 3):
        module = SFTModule(policy(), classes=classes, micro_batch_size=size)
        keep = {}
        module.on_before_optimizer_step = lambda optimizer, module=module, keep=keep: keep.update(
            {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        )
        run = trainer(tmp_path)
        run.fit(module, rows)
        gradients.append(keep)
        logged.append(run.callback_metrics["train/loss"])
    assert logged[0] == pytest.approx(float(logged[1]), rel=1e-6) and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
