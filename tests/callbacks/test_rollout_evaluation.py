"""RolloutEvaluation on the toy task with a stub policy whose skill is a parameter: when it evaluates, what it keeps, what a continued run remembers."""

import json

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from stare_lit import keys
from stare_lit.callbacks import NonFiniteGuard, Provenance, RolloutEvaluation, provenance, rollout_evaluation
from stare_lit.callbacks.non_finite import NonFiniteError
from stare_lit.callbacks.provenance import CHECKPOINT_KEY, fingerprint, lineage
from stare_lit.cli.lightning import run
from stare_lit.evaluation.evaluate import Evaluation


class StubPolicy(torch.nn.Module):
    """Does nothing; ``skill`` counts the optimizer steps it has seen (its gradient is always -1)."""

    chunk_size, environment = 5, {"chunk_size": 5}

    def __init__(self):
        super().__init__()
        self.skill = torch.nn.Parameter(torch.zeros(1))
        self.origin = None

    def act(self, tensordict, *, temperature, value=False):
        return tensordict.set(keys.ACTION_CHUNK, torch.zeros(*tensordict.shape, self.chunk_size, 7))

    def save_pretrained(self, folder):
        folder.mkdir(parents=True)
        save_file({"skill": self.skill.detach().clone()}, folder / "model.safetensors")


class Module(LightningModule):
    def __init__(self, bad_batch=None):
        super().__init__()
        self.policy, self.bad_batch = StubPolicy(), bad_batch

    def training_step(self, batch, batch_idx):
        return -self.policy.skill.sum() * (float("nan") if self.bad_batch == batch_idx else 1.0)

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def outcome(successes: int, seeds) -> Evaluation:
    once = torch.arange(len(seeds)) < successes
    zeros = torch.zeros(len(seeds))
    return Evaluation("Toy-v0", tuple(seeds), 0.0, once, once, once.float(), zeros + 30, zeros, once.long() * 2, ("reach", "place"))


@pytest.fixture
def script(monkeypatch):
    """Successes by skill; replaces the simulator."""
    successes = {}

    def evaluate_policy(policy, env, seeds, **kwargs):
        return outcome(successes.get(int(policy.skill.item()), 0), seeds)

    monkeypatch.setattr(rollout_evaluation, "evaluate_policy", evaluate_policy)
    return successes


def fit(folder, callbacks, module=None, ckpt_path=None, **settings):
    settings = {"max_steps": 6, **settings}
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False, **settings
    )
    module = module or Module()
    trainer.fit(module, DataLoader(torch.zeros(100, 1), batch_size=1), ckpt_path=ckpt_path)
    return trainer, module


def evaluation(**settings):
    return RolloutEvaluation("Toy-v0", **{"num_episodes": 10, "num_envs": 5, "image_size": 16, "every_n_steps": 2, "video_episodes": 0, **settings})


def test_keeps_best_and_last_and_reports_the_gain(tmp_path, script, capsys):
    script.update({0: 3, 2: 8, 4: 9, 6: 4})
    callback = evaluation()
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", "{step}", monitor="val/success_once", mode="max", every_n_train_steps=2)
    trainer, _ = fit(tmp_path, [callback, checkpoint, Provenance()])
    assert callback.steps == {"before": 0, "best": 4, "last": 6}
    assert trainer.callback_metrics["val/success_once"] == pytest.approx(0.4)
    assert "step=4" in checkpoint.best_model_path
    record = json.loads((tmp_path / "best" / "provenance.json").read_text())
    assert (record["phase"], record["global_step"], record["task"]) == (__name__.rpartition(".")[2], 4, "Toy-v0")
    assert record["metrics"]["val/success_once"] == pytest.approx(0.9)
    assert record["metrics"]["rollout/stage_reached/place"] == pytest.approx(0.9)
    assert record["fingerprint"] == fingerprint(tmp_path / "best") != fingerprint(tmp_path / "last")
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["paired_gains"]["best (step 4)"]["gain"] == pytest.approx(0.6)
    printed = capsys.readouterr().out
    assert "before (step 0)" in printed
    assert f"stare eval --checkpoint {tmp_path / 'best'} --task Toy-v0 --split test" in printed
    assert torch.load(checkpoint.best_model_path)[CHECKPOINT_KEY]["versions"]["torch"]


def test_the_policy_that_entered_stays_best_when_training_does_harm(tmp_path, script):
    script.update({0: 5, 2: 1})
    callback = evaluation()
    fit(tmp_path, [callback], max_steps=2)
    assert callback.steps["best"] == 0
    assert fingerprint(tmp_path / "best") != fingerprint(tmp_path / "last")


def test_stops_early(tmp_path, script):
    script.update({2: 10})
    trainer, _ = fit(tmp_path, [evaluation(stop_at=0.95)])
    assert trainer.global_step == 2


def test_by_epochs_and_without_a_start(tmp_path, script):
    callback = evaluation(every_n_steps=None, every_n_epochs=1, at_start=False)
    fit(tmp_path, [callback], max_steps=-1, max_epochs=2, limit_train_batches=3)
    assert callback.steps == {"last": 6, "best": 3}


def test_a_continued_run_remembers(tmp_path, script):
    script.update({0: 3, 2: 8, 4: 4})
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_last=True)
    fit(tmp_path, [evaluation(), checkpoint], max_steps=2)
    callback = evaluation()
    trainer, _ = fit(tmp_path, [callback, ModelCheckpoint(tmp_path / "checkpoints")], max_steps=4, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert trainer.global_step == 4
    assert callback.steps == {"before": 0, "best": 2, "last": 4}
    assert callback.results["before"].once.successes == 3


def test_nan_stops_before_the_step_and_keeps_the_last_good_policy(tmp_path, script):
    with pytest.raises(NonFiniteError, match="loss is nan in epoch 0, batch 3 "):
        fit(tmp_path, [evaluation(), NonFiniteGuard()], Module(bad_batch=3))
    record = json.loads((tmp_path / "last" / "provenance.json").read_text())
    assert record["global_step"] == 3


def test_infinite_gradients_are_named(tmp_path, script):
    module = Module()
    module.policy.skill.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match="the first: policy.skill"):
        fit(tmp_path, [NonFiniteGuard()], module)


def test_lineage_grows_by_one_each_phase(tmp_path, script):
    fit(tmp_path / "a", [evaluation()], max_steps=2)
    module = Module()
    module.policy.origin = tmp_path / "a" / "last"
    fit(tmp_path / "b", [evaluation()], module, max_steps=2)
    chain = lineage(tmp_path / "b" / "last")
    assert [entry["fingerprint"] for entry in chain] == [fingerprint(tmp_path / "a" / "last"), fingerprint(tmp_path / "b" / "last")]
    (tmp_path / "b" / "last" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="written for other weights"):
        lineage(tmp_path / "b" / "last")


def test_the_real_toy_environment_video_and_test_run(tmp_path):
    callback = evaluation(num_episodes=5, video_episodes=2, test_episodes=5)
    trainer, module = fit(tmp_path, [callback], max_steps=2)
    assert callback.results["last"].length.tolist() == [30] * 5
    assert (tmp_path / "videos" / "step_0000002.mp4").stat().st_size > 1000
    trainer.test(module, DataLoader(torch.zeros(1, 1)))
    assert json.loads((tmp_path / "test.json").read_text())["results"]["test"]["success_once"]["trials"] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"stop_at": 95.0}, "stop_at=95"),
        ({"split": "test"}, "split='test': the best policy is chosen on these seeds; choose 'validation', and run `stare eval --split test` once"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluation(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "Toy-v9"}, "'Toy-v9' has no stages"),
        ({"environment": {"max_step": 9}}, "max_step: Toy-v0 has no such setting"),
        ({"environment": {"terminate_on_success": True}}, "terminate_on_success=true would end episodes at success"),
        ({"task": "PushCube-v1", "num_workers": 3}, "num_envs=5 does not divide over num_workers=3"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_there_are_demonstrations(settings, message, tmp_path):
    values = {"task": "Toy-v0", "num_episodes": 5, "num_envs": 5, **settings}
    callback = {"class_path": "stare_lit.callbacks.RolloutEvaluation", "init_args": values}
    words = ["fit", "--config=configs/toy/sft.yaml", f"--run_dir={tmp_path / 'run'}", f"--data.folder={tmp_path / 'demos'}"]
    with pytest.raises(ValueError, match=message):
        run([*words, f"--trainer.callbacks={json.dumps([callback])}"])
    assert not (tmp_path / "demos").exists() and not list((tmp_path / "run").glob("*.yaml"))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        provenance.fingerprint(tmp_path)
