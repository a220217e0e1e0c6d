"""Stage labels, flat batches, stored rollouts and references: by hand where numbers matter, on the toy where files do."""

from dataclasses import replace

import pytest
import torch
from lightning import LightningModule, Trainer
from tensordict import TensorDict

from stare_lit.data import offline
from stare_lit.data.labels import label
from stare_lit.data.offline import SAMPLE, RolloutSettings, collect_rollouts, policy_fingerprint, rollout_folder, select_episodes
from stare_lit.data.pairs import PairRule, Pairs
from stare_lit.data.preferences import PairBatches, PreferenceDataModule
from stare_lit.data.references import decision_keys, reference_log_probs
from stare_lit.data.trajectories import Trajectories
from stare_lit.models.vla.presets import tiny
from stare_lit.stages.predicates import Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

SETTINGS = RolloutSettings(num_states=2, num_samples=3, num_envs=3)

SPEC = StageSpec(
    "Hand-v0",
    (
        Stage("near", Below("distance", 0.1), (ErrorTerm("distance", scale=1.0),)),
        Stage("press", Flag("success"), (ErrorTerm("depth", scale=1.0),)),
    ),
    (ErrorTerm("distance", scale=1.0),),
)


def small_policy(seed: int = 0):
    torch.manual_seed(seed)
    return tiny(4, image_size=32, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8)


def collect(policy, folder, settings=SETTINGS) -> Trajectories:
    return collect_rollouts(policy, folder, settings, task="Toy-v0", image_size=32, show_progress=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Trajectories:
    return collect(small_policy(), tmp_path_factory.mktemp("toy"))


def _stop():
    raise InterruptedError


class TestLabel:
    def episodes(self):
        """Two rollouts of up to three decisions: 0 is near after one and succeeds with its third, 1 never gets near and ends after two."""
        distance = torch.tensor([[0.8, 0.05, 0.5, 0.5], [0.6, 0.4, 0.3, float("nan")]])
        depth = torch.tensor([[1.0, 0.5, 0.25, 0.0], [1.0, 1.0, 1.0, float("nan")]])
        success = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
        states = {"distance": distance, "depth": depth, "success": success}
        num_steps = torch.tensor([[2, 2, 1], [2, 2, 0]])
        data = {
            "signals": {name: value[:, :3] for name, value in states.items()},
            "next": {"signals": {name: value[:, 1:] for name, value in states.items()}, "num_steps": num_steps.unsqueeze(-1)},
            "vla_action": {"log_probs": torch.full((2, 3, 2, 1), -1.0)},
            "episode_seed": torch.tensor([[7, 7, 7], [7, 7, 0]]),
        }
        return TensorDict(data, batch_size=[2, 3]), torch.tensor([[True, True, True], [True, True, False]])

    def test_by_hand(self):
        outcomes, index = label(SPEC, *self.episodes())
        # the stage in the state before each decision; lost nearness does not matter, for offline labels are monotone
        assert index.tolist() == [[0, 1, 1], [0, 0, -1]]
        assert outcomes.completed.tolist() == [[True, True], [False, False]]
        assert outcomes.decisions.tolist() == [[1, 2], [2, 0]]
        torch.testing.assert_close(outcomes.cost, torch.tensor([[0.8, 0.375], [0.5, 0.0]]))
        # in steps: 0.8 * 2; 0.5 * 2 + 0.25 * 1; 0.6 * 2 + 0.4 * 2
        torch.testing.assert_close(outcomes.total_error, torch.tensor([[1.6, 1.25], [2.0, 0.0]]))
        # one token a step, so minus the number of executed steps
        assert outcomes.log_likelihood.tolist() == [-5.0, -4.0]
        assert outcomes.state.tolist() == [7, 7]

    def test_where_the_last_step_counts_a_success_that_was_lost_never_ended_the_last_stage(self):
        data, mask = self.episodes()
        bridge = StageSpec("PutCarrotOnPlateInScene-v1", SPEC.stages, SPEC.whole_task)
        signal = data["next", "signals", "success"]
        signal[1, 0], data["signals", "success"][1, 1] = 1.0, 1.0  # 1 has it after its first decision, and not at its end
        data["next", "success"] = torch.tensor([[[False], [False], [True]], [[True], [False], [False]]])
        kept, kept_index = label(SPEC, data, mask)
        lost, lost_index = label(bridge, data, mask)
        assert kept.completed.tolist() == [[True, True], [True, True]]
        assert lost.completed.tolist() == [[True, True], [True, False]]
        assert kept_index.tolist() == [[0, 1, 1], [0, 2, -1]]
        assert lost_index.tolist() == [[0, 1, 1], [0, 1, -1]]  # the decision that lost it belongs to the stage that it lost
        assert lost.decisions.tolist() == [[1, 2], [1, 1]] and kept.decisions.tolist() == [[1, 2], [1, 0]]


class TestPairBatches:
    def test_holds_only_the_decisions_that_a_stage_pair_compares(self, toy):
        start = toy.episodes["start"][:2]
        stage_index = torch.tensor([[0, 0, 1, 1], [0, 1, 1, -1]])
        batches = PairBatches(
            toy,
            torch.tensor([500_000, 500_000]),
            start,
            stage_index,
            torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
            torch.arange(float(len(toy))),
            Pairs(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([[1, 0], [0, -1]])),
        )
        batch = batches[[0, 1]]
        # pair 0 compares stage 0 (two decisions of a, one of b), pair 1 stage 1 (two and two)
        assert batch["trajectory"].tolist() == [0, 0, 1, 1, 2, 3, 3]
        assert batch["position"].tolist() == [0, 1, 0, 1, 0, 0, 1]
        assert batch["stage_index"].tolist() == [0, 0, 1, 1, 0, 1, 1]
        assert batch["episode_seed"].tolist() == [500_000, 500_000]
        rows = torch.tensor([0, 1, 2, 3]).add(start[0]).tolist() + torch.tensor([0, 1, 2]).add(start[1]).tolist()
        assert batch["decisions", "reference_log_prob"].tolist() == rows
        assert batch["decision"].tolist() == [0, 1, 2, 3, 4, 5, 6]
        torch.testing.assert_close(batch["cost"], torch.tensor([[[0.1, 0.2]] * 2, [[0.3, 0.4]] * 2]))
        expected = toy.rows(torch.tensor(rows), [("vla_action", "tokens")])
        assert torch.equal(batch["decisions", "vla_action", "tokens"], expected["vla_action", "tokens"])
        both = batches[[0, 0]]  # the same decisions again, each held once
        assert both["decision"].tolist() == [0, 1, 0, 1, 2, 2]
        assert both["trajectory"].tolist() == [0, 0, 1, 1, 2, 3]
        assert both["decisions", "reference_log_prob"].tolist() == [rows[0], rows[1], rows[4]]


class TestRollouts:
    @pytest.mark.parametrize(("task", "ends"), [("PutCarrotOnPlateInScene-v1", False), ("PushCube-v1", True)])
    def test_an_episode_ends_at_success_unless_the_last_step_counts(self, task, ends, monkeypatch, tmp_path):
        asked = {}
        monkeypatch.setattr(offline, "make_env", lambda *_, **settings: asked.update(settings) or _stop())
        with pytest.raises(InterruptedError):
            collect_rollouts(small_policy(), tmp_path / "new", SETTINGS, task=task, image_size=32, show_progress=False)
        assert asked["terminate_on_success"] is ends

    def test_every_state_is_sampled_and_samples_differ(self, toy):
        assert toy.episodes["seed"].tolist() == [500_000] * 3 + [500_001] * 3
        assert toy.episodes[SAMPLE].tolist() == [0, 1, 2] * 2
        first = toy.rows(toy.episodes["start"])
        assert torch.equal(first["observation", "image"][0], first["observation", "image"][2])  # one initial state
        assert not torch.equal(first["vla_action", "tokens"][0], first["vla_action", "tokens"][1])
        assert toy.metadata.kind == "rollouts"

    def test_goes_on_where_it_stopped_and_then_does_nothing(self, tmp_path):
        policy = small_policy()
        collect(policy, tmp_path, RolloutSettings(num_states=1, num_samples=3, num_envs=3))
        grown = collect(policy, tmp_path)
        assert len(grown.infos) == 2 and len(collect(policy, tmp_path).infos) == 2
        assert select_episodes(grown, SETTINGS).tolist() == list(range(6))
        assert select_episodes(grown, RolloutSettings(num_states=2, num_samples=2)).tolist() == [0, 1, 3, 4]

    def test_killed_half_way_it_ends_like_an_unbroken_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(offline, "EPISODES_PER_SHARD", 3)
        unbroken = collect(small_policy(), tmp_path / "unbroken")
        killed, act = small_policy(), small_policy().act

        def dies(tensordict, *, temperature):
            if int(tensordict["episode_seed"][0]) == 500_001:
                raise KeyboardInterrupt
            return act(tensordict, temperature=temperature)

        monkeypatch.setattr(killed, "act", dies)
        with pytest.raises(KeyboardInterrupt):
            collect(killed, tmp_path / "killed")
        assert Trajectories(tmp_path / "killed").num_episodes == 3
        resumed = collect(small_policy(), tmp_path / "killed")
        rows = torch.arange(len(unbroken))
        assert (resumed.rows(rows) == unbroken.rows(rows)).all()

    def test_rollouts_of_another_policy_are_refused(self, toy):
        with pytest.raises(ValueError, match="policy is"):
            collect(small_policy(seed=1), toy.folder)
        assert rollout_folder("x", "Toy-v0", small_policy(seed=1)) != rollout_folder("x", "Toy-v0", small_policy())

    @pytest.mark.parametrize(("name", "value"), [("num_states", 0), ("first_seed", 999_999), ("num_samples", 1), ("temperature", 0.0), ("num_envs", 0)])
    def test_bad_settings_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            RolloutSettings(**{name: value})

    @pytest.mark.parametrize(("task", "message"), [("Toy-v0", "must be at least 1"), ("PushCube-v1", "at least 8 pixels")])
    def test_no_pixels_are_not_the_policys_own_number(self, task, message, tmp_path):
        with pytest.raises(ValueError, match=f"image_size=0: {message}"):
            collect_rollouts(small_policy(), tmp_path / "new", SETTINGS, task=task, image_size=0, show_progress=False)
        assert not (tmp_path / "new").exists()


class TestReferences:
    def test_computed_once_for_the_same_weights(self, toy, monkeypatch):
        policy, calls = small_policy(), []
        evaluate = policy.evaluate_actions
        monkeypatch.setattr(policy, "evaluate_actions", lambda *args, **kwargs: calls.append(0) or evaluate(*args, **kwargs))
        first = reference_log_probs(policy, toy, temperature=0.7, batch_size=16, show_progress=False)
        number = len(calls)
        again = reference_log_probs(policy, toy, temperature=0.7, batch_size=16, show_progress=False)
        assert number > 1 and len(calls) == number and torch.equal(first, again)
        reference_log_probs(policy, toy, temperature=0.5, show_progress=False)
        assert len(calls) > number
        changed = reference_log_probs(small_policy(seed=1), toy, temperature=0.7, show_progress=False)
        assert not torch.allclose(first, changed)

    def test_is_what_the_policy_said_when_it_acted(self, toy):
        log_prob = reference_log_probs(small_policy(), toy, temperature=1.0, show_progress=False)
        rows = toy.rows(torch.arange(len(toy)))
        executed = torch.arange(2) < rows["next", "num_steps"]
        stored = (rows["vla_action", "log_probs"] * executed.unsqueeze(-1)).sum((1, 2))
        torch.testing.assert_close(log_prob, stored, atol=1e-4, rtol=1e-4)

    def test_damaged_weights_are_refused_and_nothing_is_written(self, toy):
        policy = small_policy()
        with torch.no_grad():
            policy.placeholders.fill_(float("nan"))
        before = sorted((toy.folder / "references").glob("*"))
        with pytest.raises(ValueError, match="log-probability of stored decision 0 is nan"):
            reference_log_probs(policy, toy, show_progress=False)
        assert sorted((toy.folder / "references").glob("*")) == before

    def test_fingerprint_sees_every_weight(self):
        policy = small_policy()
        before = policy_fingerprint(policy)
        assert before == policy_fingerprint(small_policy())
        with torch.no_grad():
            policy.placeholders[0, 0] += 1e-6
        assert policy_fingerprint(policy) != before

    @pytest.mark.parametrize("setting", [{"image_crop": 0.9}, {"image_kernel": "lanczos"}, {"prompt": "{instruction}!"}, {"action_prior": 0.3}])
    def test_fingerprint_sees_how_the_policy_reads(self, setting):
        policy = small_policy()
        before = policy_fingerprint(policy)
        policy.config = replace(policy.config, **setting)
        assert policy_fingerprint(policy) != before
        policy.config = replace(policy.config, tokenizer="elsewhere", **{name: getattr(small_policy().config, name) for name in setting})
        assert policy_fingerprint(policy) == before

    def test_decisions_carry_no_outcome(self, toy):
        names = decision_keys(toy)
        assert ("observation",) in names and ("next", "num_steps") in names
        assert not any(name[0] == "next" for name in names if name != ("next", "num_steps"))


class Handed(LightningModule):
    """What the DataModule needs of a module."""

    def __init__(self, policy) -> None:
        super().__init__()
        self.policy, self.temperature = policy, 1.0

    def training_step(self, batch, batch_idx):
        raise AssertionError("no pair was expected")

    def configure_optimizers(self):
        return None


def test_missing_rollouts_are_made_and_their_uselessness_is_said(tmp_path):
    """A random policy completes no stage on the toy."""
    data = PreferenceDataModule("Toy-v0", image_size=32, folder=str(tmp_path), rollouts=SETTINGS, rule=PairRule(kind="success", use_cost=False))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(ValueError, match="no preference pair in 6 episodes from 2 states"):
        trainer.fit(Handed(small_policy()), data)
    assert Trajectories(rollout_folder(tmp_path, "Toy-v0", small_policy())).num_episodes == 6


@pytest.mark.parametrize(("name", "value"), [("validation_fraction", 1.0), ("batch_size", 0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        PreferenceDataModule("Toy-v0", **{name: value})
