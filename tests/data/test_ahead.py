"""Rounds sampled while the learner learns: by which weights, that it shows nowhere else, and how it ends."""

import copy
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.callbacks import StateStatistics
from stare_lit.data.ahead import Ahead
from stare_lit.data.ray_rounds import RaySettings
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.models.vla.presets import tiny

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def policy():
    torch.manual_seed(0)
    return tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16))


def data(**settings) -> RolloutDataModule:
    return RolloutDataModule("Toy-v0", **{"num_envs": 3, "decisions_per_env": 4, "max_episode_steps": 5, "staleness": 1, **settings})


class Mover(LightningModule):
    """Learns nothing, but has other weights after every round; keeps the rounds and how far behind they were."""

    def __init__(self, seconds: float = 0.0, error: BaseException | None = None):
        super().__init__()
        self.policy, self.seconds, self.error = policy(), seconds, error
        self.automatic_optimization = False
        self.rounds, self.lags, self.weights = [], [], []

    def training_step(self, batch, batch_idx):
        if self.error is not None:
            raise self.error
        self.rounds.append(batch)
        self.lags.append(self.trainer.datamodule.lag)
        self.weights.append({name: value.clone() for name, value in self.policy.state_dict().items()})
        time.sleep(self.seconds)
        torch.rand(7)  # the learner's random numbers are its own
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.mul_(1.05)

    def configure_optimizers(self):
        return None


def fit(tmp_path, module, datamodule, epochs=3, **settings):
    Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=epochs, **QUIET, **{"enable_checkpointing": False, **settings}).fit(module, datamodule)


def sampling_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


def test_each_round_is_sampled_by_the_weights_of_the_round_before(tmp_path):
    module = Mover()
    fit(tmp_path, module, data())
    assert module.lags == [0, 1, 1]
    behind = policy().eval()
    for number, batch in enumerate(module.rounds):
        for learnt in range(3):
            behind.load_state_dict(module.weights[learnt])
            found = behind.evaluate_actions(batch)["log_probs"]
            assert torch.allclose(found, batch[keys.LOG_PROBS], atol=1e-5) == (learnt == max(number - 1, 0))
    assert not sampling_threads()


def test_statistics_that_are_taken_before_the_training_reach_who_samples(tmp_path):
    """The round they are taken from is nobody's to learn from, and none is sampled ahead of it."""
    module = Mover()
    module.policy = tiny(11, observation="state", normalize_state=True, hidden_size=32, num_layers=1, num_bins=8, chunk_size=2)
    fit(tmp_path, module, data(), callbacks=[StateStatistics()])
    assert module.policy.state_projector.calibrated and module.lags == [0, 1, 1]
    behind = copy.deepcopy(module.policy).eval()
    for number, batch in enumerate(module.rounds):
        behind.load_state_dict(module.weights[max(number - 1, 0)])
        assert torch.allclose(behind.evaluate_actions(batch)["log_probs"], batch[keys.LOG_PROBS], atol=1e-5)


def test_rounds_do_not_depend_on_who_is_faster_nor_on_what_the_learner_draws(tmp_path):
    rounds = []
    for seconds in (0.0, 0.5):
        module = Mover(seconds)
        fit(tmp_path, module, data())
        rounds.append(module.rounds)
    for one, other in zip(*rounds, strict=True):
        for key in (keys.IMAGE, keys.ACTION_TOKENS, keys.LOG_PROBS, keys.EPISODE_SEED, keys.STATE_VALUE):
            assert torch.equal(one[key], other[key])
    assert not torch.equal(rounds[0][1][keys.IMAGE], rounds[0][2][keys.IMAGE])


def test_a_run_that_goes_on_equals_the_undisturbed_one(tmp_path):
    settings = {"minibatch_size": 4, "value_warmup_rounds": 0, "learning_rate": 1e-3}
    whole = StaPPOModule(policy(), **settings)
    keeper = ModelCheckpoint(tmp_path / "whole", save_top_k=-1, filename="{epoch}")
    fit(tmp_path, whole, data(), epochs=4, callbacks=[keeper], enable_checkpointing=True)
    first = StaPPOModule(policy(), **settings)
    last = ModelCheckpoint(tmp_path / "first", save_last=True)
    fit(tmp_path, first, data(), epochs=2, callbacks=[last], enable_checkpointing=True)  # ends, where the other was sampling on
    for checkpoint in (tmp_path / "whole" / "epoch=1.ckpt", last.last_model_path):
        torch.manual_seed(123)  # another process
        second, datamodule = StaPPOModule(policy(), **settings), data()
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=4, enable_checkpointing=False, **QUIET)
        trainer.fit(second, datamodule, ckpt_path=checkpoint, weights_only=True)
        assert datamodule.round == 4 and trainer.callback_metrics["rollout/staleness"] == 1
        for name, value in whole.policy.state_dict().items():
            assert torch.equal(second.policy.state_dict()[name], value), name


def test_an_error_of_the_simulator_is_the_error_of_the_run(tmp_path):
    datamodule = data()
    module = Mover()
    sample = datamodule._sample

    def failing(number):
        if number == 1:
            raise RuntimeError("simulator worker 0 has died")
        return sample(number)

    datamodule._sample = failing
    with pytest.raises(RuntimeError, match="simulator worker 0 has died"):
        fit(tmp_path, module, datamodule)
    assert len(module.rounds) == 1 and not sampling_threads()


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt(), SystemExit), (ValueError("loss"), ValueError)])
def test_nothing_goes_on_after_an_interrupt_or_an_error_of_the_learner(tmp_path, error, raised):
    datamodule = data(decisions_per_env=100_000, num_envs=1)
    sample, nothing = datamodule._sample, TensorDict({keys.next_(keys.NUM_STEPS): torch.zeros(1)})
    datamodule._sample = lambda number: (nothing, {}) if number == 0 else sample(number)  # the second round would take minutes
    started = time.monotonic()
    with pytest.raises(raised):
        fit(tmp_path, Mover(error=error), datamodule)
    assert not sampling_threads() and time.monotonic() - started < 60


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="staleness=2"):
        data(staleness=2)
    with pytest.raises(ValueError, match="staleness=1 with ray"):
        data(ray=RaySettings(num_collectors=1))
    for sharded in (data(), data(staleness=0, ray=RaySettings(num_collectors=1))):
        sharded.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device_mesh=object(), policy=policy()))
        with pytest.raises(ValueError, match="sharded weights"):
            sharded.setup("fit")
    state = Ahead(policy()).state_dict()
    state["weights"].pop("placeholders")
    with pytest.raises(ValueError, match="ckpt_path"):
        Ahead(policy(), state)
