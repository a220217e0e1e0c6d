"""The interaction phase on the toy: advantages by hand, the first update, warm-up, KL stop, and a run that goes on exactly."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.envs.transforms import RewardConfig
from stare_lit.models.vla.presets import tiny
from stare_lit.objectives.executed import sum_executed

GAMMA, LMBDA = 0.9, 0.8


def policy():
    torch.manual_seed(0)
    return tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16))


def data(**settings) -> RolloutDataModule:
    return RolloutDataModule("Toy-v0", **{"num_envs": 3, "decisions_per_env": 4, "max_episode_steps": 5, **settings})


def fit(tmp_path, module, datamodule=None, epochs=1, ckpt_path=None, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    settings = {"enable_checkpointing": False, **settings}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=epochs, **quiet, **settings)
    trainer.fit(module, datamodule or data(), ckpt_path=ckpt_path)
    return trainer


# -- advantages ----------------------------------------------------------------------------------------------------------
class Seen(torch.nn.Module):
    """Its value of a state is the state's only feature."""

    def __init__(self):
        super().__init__()
        self.value_head = torch.nn.Linear(1, 1)

    def value_only(self, tensordict):
        return tensordict[keys.STATE]


def made_up() -> TensorDict:
    """Two environments, three decisions. Row 0: success at t=1, then the round ends in a new episode. Row 1: time limit at t=0, success at t=2."""
    return TensorDict(
        {
            keys.STATE_VALUE: torch.tensor([[0.5, 0.7, 0.2], [0.3, 0.4, 0.6]])[..., None],
            "next": {
                keys.INSTRUCTION_TOKENS: torch.zeros(2, 3, 1, dtype=torch.int64),
                keys.REWARD: torch.tensor([[0.1, 1.0, -0.2], [0.05, 0.3, 0.9]])[..., None],
                keys.NUM_STEPS: torch.tensor([[2, 1, 2], [2, 2, 1]])[..., None],
                keys.TERMINATED: torch.tensor([[False, True, False], [False, False, True]])[..., None],
                keys.DONE: torch.tensor([[False, True, False], [True, False, True]])[..., None],
                "observation": {"state": torch.tensor([[9.0, 9.0, 0.8], [0.9, 9.0, 9.0]])[..., None]},  # before a reset; 9 must not be asked for
                "signals": TensorDict(batch_size=[2, 3]),
            },
        },
        batch_size=[2, 3],
    )


def by_hand(next_values, terminated, done) -> torch.Tensor:
    """delta = R + gamma^h (1 - terminated) V' - V; A = delta + gamma^h lambda (1 - done) A', one decision at a time."""
    batch, advantage = made_up(), torch.zeros(2, 3)
    for row in range(2):
        following = 0.0
        for t in (2, 1, 0):
            discount = GAMMA ** int(batch["next", keys.NUM_STEPS][row, t])
            delta = batch["next", keys.REWARD][row, t] + discount * (not terminated[row][t]) * next_values[row][t] - batch[keys.STATE_VALUE][row, t]
            following = advantage[row, t] = float(delta) + discount * LMBDA * (not done[row][t]) * following
    return advantage


@pytest.mark.parametrize("bootstrap", [True, False])
def test_advantages_are_those_of_the_formula(bootstrap):
    module = StaPPOModule(Seen(), lmbda=LMBDA)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    module._trainer = trainer
    batch = module.advantages(made_up(), gamma=GAMMA, bootstrap_truncation=bootstrap)
    done = [[False, True, False], [True, False, True]]
    terminated = [[False, True, False], [not bootstrap, False, True]]
    expected = by_hand([[0.7, 0.0, 0.8], [0.9, 0.6, 0.0]], terminated, done)
    torch.testing.assert_close(batch["advantage"], expected)
    torch.testing.assert_close(batch["value_target"], expected + made_up()[keys.STATE_VALUE].squeeze(-1))


# -- updates -------------------------------------------------------------------------------------------------------------
def test_first_update_starts_from_ratio_1(tmp_path):
    module = StaPPOModule(policy(), num_epochs=1, value_warmup_rounds=0)
    metrics = fit(tmp_path, module).callback_metrics
    assert metrics["train/approx_kl"].abs() < 1e-6
    assert metrics["train/clip_fraction"] == 0
    assert metrics["train/loss_policy"].abs() < 1e-4  # advantages have mean 0
    assert metrics["rollout/env_steps"] > 12
    assert metrics["train/entropy"] > 0


@pytest.mark.parametrize("rounds", [0, 1])
def test_warm_up_moves_the_value_head_alone(tmp_path, rounds):
    module = StaPPOModule(policy(), value_warmup_rounds=rounds)
    before = {name: value.clone() for name, value in module.policy.state_dict().items()}
    fit(tmp_path, module)
    moved = {name for name, value in module.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("value_head") for name in moved)
    assert any(not name.startswith("value_head") for name in moved) == (rounds == 0)


def test_target_kl_ends_the_passes(tmp_path):
    settings = {"num_epochs": 3, "minibatch_size": 4, "learning_rate": 1e-2, "value_warmup_rounds": 0}
    stopped = fit(tmp_path, StaPPOModule(policy(), target_kl=1e-6, **settings)).callback_metrics
    free = fit(tmp_path, StaPPOModule(policy(), target_kl=None, **settings)).callback_metrics
    assert (stopped["train/epochs"], stopped["train/stopped_by_kl"]) == (1, 1)
    assert (free["train/epochs"], free["train/stopped_by_kl"]) == (3, 0)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_micro_batches_add_up_to_the_minibatch(tmp_path, size):
    settings = {"num_epochs": 1, "value_warmup_rounds": 0, "entropy_coeff": 0.1, "learning_rate": 1e-3, "max_grad_norm": 1e9}
    whole, split = StaPPOModule(policy(), **settings), StaPPOModule(policy(), micro_batch_size=size, **settings)
    gradients, metrics = [], []
    for module in (whole, split):
        keep = SimpleNamespace()
        module.on_before_optimizer_step = lambda optimizer, module=module, keep=keep: setattr(
            keep, "gradients", {name: p.grad.clone() for name, p in module.named_parameters()}
        )
        metrics.append(fit(tmp_path, module).callback_metrics)
        gradients.append(keep.gradients)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics[1]["train/loss"], metrics[0]["train/loss"])


def test_an_image_is_seen_once_a_pass_and_stays_uint8(tmp_path):
    """The tower's work: one row a decision when sampled, one a pass (policy and value together), one for each state that is bootstrapped."""
    module, seen, kept = StaPPOModule(policy(), num_epochs=3, minibatch_size=5, target_kl=None), [], []
    module.policy.vision.register_forward_pre_hook(lambda _, inputs: seen.append((torch.is_grad_enabled(), inputs[0].dtype, len(inputs[0]))))
    datamodule = data()
    collect = datamodule.collect
    datamodule.collect = lambda: kept.append(collect()) or kept[-1]
    fit(tmp_path, module, datamodule)
    assert {dtype for _, dtype, _ in seen} == {torch.uint8} == {kept[0][key].dtype for key in (keys.IMAGE, keys.next_(keys.IMAGE))}
    assert not any(value.requires_grad for value in kept[0].values(include_nested=True, leaves_only=True))
    done = kept[0][keys.next_(keys.DONE)] & ~kept[0][keys.next_(keys.TERMINATED)]
    bootstrapped = int(done[:, :-1].sum()) + 3
    assert sum(num for gradient, _, num in seen if gradient) == 3 * 12
    assert sum(num for gradient, _, num in seen if not gradient) == 12 + bootstrapped + 3  # a collector tries the policy once when it is made


def test_value_head_has_a_learning_rate_of_its_own():
    module = StaPPOModule(policy(), learning_rate=1e-5, value_learning_rate=1e-2)
    trunk, head = module.configure_optimizers()["optimizer"].param_groups
    assert (trunk["lr"], head["lr"]) == (1e-5, 1e-2)
    assert {id(p) for p in head["params"]} == {id(p) for p in module.policy.value_head.parameters()}
    assert len(trunk["params"]) + len(head["params"]) == len(list(module.policy.parameters()))


def test_both_learning_rates_fall_over_the_rounds(tmp_path):
    module, seen = StaPPOModule(policy(), learning_rate=1e-3, value_learning_rate=1e-2, schedule="cosine", value_warmup_rounds=0, num_epochs=2), []
    module.on_before_optimizer_step = lambda optimizer: seen.append([group["lr"] for group in optimizer.param_groups])
    fit(tmp_path, module, epochs=2)
    assert seen == [[1e-3, 1e-2]] * 2 + [[pytest.approx(0.525e-3), pytest.approx(0.525e-2)]] * 2


def test_an_endless_run_has_no_cosine(tmp_path):
    with pytest.raises(ValueError, match="schedule='cosine' needs to know its end"):
        fit(tmp_path, StaPPOModule(policy(), schedule="cosine"), epochs=-1)


def test_ppo_is_a_setting_of_the_reward(tmp_path):
    """No shaping left: the same update as on the sparse reward."""
    weights = []
    for reward in (RewardConfig(mode="sparse"), RewardConfig(mode="stage", coefficient=0.0), RewardConfig(mode="stage")):
        module = StaPPOModule(policy(), value_warmup_rounds=0, learning_rate=1e-3)
        fit(tmp_path, module, data(reward=reward))
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


def test_a_stopped_run_goes_on_exactly(tmp_path):
    whole, first, second = (StaPPOModule(policy(), minibatch_size=4, value_warmup_rounds=0, learning_rate=1e-3) for _ in range(3))
    fit(tmp_path, whole, epochs=2)
    keeper = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, first, callbacks=[keeper], enable_checkpointing=True)
    torch.manual_seed(123)  # another process
    datamodule = data()
    fit(tmp_path, second, datamodule, epochs=2, ckpt_path=keeper.last_model_path)
    assert datamodule.round == 2
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(second.policy.state_dict()[name], value, rtol=0, atol=0)


# -- groups instead of a critic ------------------------------------------------------------------------------------------
GROUP = {"advantage": "group", "critic_coeff": 0.0, "value_warmup_rounds": 0}


def episodes(success, lengths, time=3) -> TensorDict:
    """Whole episodes [N, time]: which succeed at their end, after how many decisions."""
    lengths = torch.tensor(lengths)[:, None]
    last = torch.arange(time) == lengths - 1
    after = {keys.DONE: last[..., None], keys.SUCCESS: (last & torch.tensor(success)[:, None])[..., None]}
    return TensorDict({"mask": torch.arange(time) < lengths, "next": after}, batch_size=last.shape)


def test_each_real_decision_has_the_advantage_of_its_episode():
    module = StaPPOModule(Seen(), **GROUP)
    found = module.group_advantages(episodes([False, True, True, True], [3, 1, 2, 2]), group_size=2)
    half = 0.5**0.5  # 0.5 over the deviation of (0, 1)
    torch.testing.assert_close(found["advantage"], torch.tensor([-half] * 3 + [half] + [0.0] * 4))


def test_a_success_that_is_lost_again_is_none():
    """Without ``terminate_on_success`` the end of the episode counts."""
    batch = episodes([False, False], [3, 3])
    batch[keys.next_(keys.SUCCESS)][0, 1] = True
    assert (StaPPOModule(Seen(), **GROUP).group_advantages(batch, group_size=2)["advantage"] == 0).all()


def test_scaled_gradients_are_clipped_at_the_scaled_norm(tmp_path, monkeypatch):
    """With 16-mixed the scaler's factor is still in the gradients where Lightning lets them be clipped."""
    limits = []
    monkeypatch.setattr(StaPPOModule, "clip_gradients", lambda self, optimizer, gradient_clip_val, **_: limits.append(gradient_clip_val))
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    for plugins in ([], [half]):
        fit(tmp_path, StaPPOModule(policy(), num_epochs=1, minibatch_size=100, max_grad_norm=10.0), plugins=plugins)
    assert limits == [10.0, 10240.0]


class Wins(RolloutDataModule):
    """Rounds in which every other episode succeeds, after its first decision."""

    def collect(self):
        batch = super().collect()
        batch["mask"][::2, 1:], batch["next", keys.SUCCESS][::2, 0] = False, True
        batch["next", keys.DONE][::2] = batch["mask"][::2, :, None]
        self.seen = batch.clone()
        return batch


def groups(kind=RolloutDataModule, **settings) -> RolloutDataModule:
    return kind("Toy-v0", **{"num_envs": 4, "decisions_per_env": 3, "group_size": 4, "max_episode_steps": 5, "reward": RewardConfig(mode="sparse"), **settings})


def test_groups_make_winners_likelier_and_leave_the_value_head(tmp_path):
    module, datamodule = StaPPOModule(policy(), num_epochs=1, learning_rate=1e-3, **GROUP), groups(Wins)
    head = {name: value.clone() for name, value in module.policy.value_head.state_dict().items()}
    metrics = fit(tmp_path, module, datamodule).callback_metrics
    batch = datamodule.seen
    with torch.no_grad():
        new = module.policy.evaluate_actions(batch[batch["mask"]], temperature=datamodule.temperature)
    change = sum_executed(new["log_probs"] - batch[batch["mask"]][keys.LOG_PROBS], batch[batch["mask"]][keys.next_(keys.NUM_STEPS)].squeeze(-1))
    won = (torch.arange(4) % 2 == 0)[:, None].expand(4, 3)[batch["mask"]]
    assert change[won].mean() > 0 > change[~won].mean()
    assert metrics["rollout/success"] == 0.5 and metrics["train/nonzero_advantages"] == 1 and "train/loss_value" not in metrics
    assert all(torch.equal(value, head[name]) for name, value in module.policy.value_head.state_dict().items())


def test_what_lies_after_an_episode_earns_no_gradient(tmp_path):
    """Whatever stands in the padding, the update is the same."""
    weights = []
    for noise in (0.0, 1e3):

        class Noisy(Wins):
            def collect(self, noise=noise):
                batch = super().collect()
                batch[keys.LOG_PROBS][~batch["mask"]] += noise
                return batch

        module = StaPPOModule(policy(), learning_rate=1e-3, **GROUP)
        fit(tmp_path, module, groups(Noisy))
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_groups_that_end_alike_move_nothing(tmp_path):
    module = StaPPOModule(policy(), learning_rate=1e-3, **GROUP)
    before = {name: value.clone() for name, value in module.policy.state_dict().items()}
    metrics = fit(tmp_path, module, groups()).callback_metrics  # an untrained policy never succeeds
    assert metrics["rollout/success"] == 0 and metrics["train/nonzero_advantages"] == 0
    assert all(torch.equal(value, before[name]) for name, value in module.policy.state_dict().items())


@pytest.mark.parametrize(
    ("model", "rounds", "message"),
    [
        (GROUP, {"group_size": None}, "advantage='group' with data.group_size=None"),
        ({}, {}, "advantage='gae' with data.group_size=4"),
        (GROUP, {"reward": RewardConfig()}, "data.reward.mode='stage'; set it to 'sparse'"),
    ],
)
def test_groups_that_do_not_fit_are_refused_before_any_work(tmp_path, model, rounds, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, StaPPOModule(policy(), **model), groups(**rounds))


def test_group_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="critic_coeff=1.0 and value_warmup_rounds=0 mean nothing"):
        StaPPOModule(Seen(), advantage="group", value_warmup_rounds=0)
    with pytest.raises(ValueError, match="advantage='mc': choose 'gae' or 'group'"):
        StaPPOModule(Seen(), advantage="mc")


@pytest.mark.parametrize(("name", "value"), [("num_epochs", 0), ("learning_rate", 0.0), ("lmbda", 1.5), ("clip_epsilon", 0.0), ("micro_batch_size", 0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        StaPPOModule(Seen(), **{name: value})
