"""Rounds of experience: seeded, complete, sampled by the newest weights, counted over a resume."""

import pytest
import torch
from lightning import LightningModule, Trainer

from stare_lit import keys
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.envs.transforms import RewardConfig
from stare_lit.models.vla.presets import tiny


class Keeper(LightningModule):
    """Trains nothing; keeps the rounds it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.policy = tiny(4, image_size=16, chunk_size=2, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16))
        self.automatic_optimization = False
        self.rounds = []

    def training_step(self, batch, batch_idx):
        self.rounds.append(batch.clone())

    def configure_optimizers(self):
        return None


def rounds(tmp_path, epochs=2, state=None, **settings):
    module, data = Keeper(), RolloutDataModule("Toy-v0", **{"num_envs": 3, "decisions_per_env": 4, "max_episode_steps": 5, **settings})
    if state is not None:
        data.load_state_dict(state)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=epochs, **quiet).fit(module, data)
    return module.rounds, data


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in (keys.IMAGE, keys.ACTION_TOKENS, keys.LOG_PROBS, keys.EPISODE_SEED, keys.next_(keys.REWARD)))


def test_a_round_depends_on_its_number_alone(tmp_path):
    first, data = rounds(tmp_path)
    torch.manual_seed(99)
    again, _ = rounds(tmp_path)
    assert same(first[0], again[0]) and same(first[1], again[1])
    assert not same(first[0], first[1])
    resumed, later = rounds(tmp_path, epochs=1, state={"round": 1, "env_steps": 7})
    assert same(resumed[0], first[1])
    assert data.state_dict() == {"round": 2, "env_steps": sum(int(batch[keys.next_(keys.NUM_STEPS)].sum()) for batch in first)}
    assert later.env_steps == 7 + int(resumed[0][keys.next_(keys.NUM_STEPS)].sum())
    other, _ = rounds(tmp_path, epochs=1, seed=1)
    assert not same(other[0], first[0])


def test_a_round_holds_whole_decisions_and_the_observation_before_a_reset(tmp_path):
    batch = rounds(tmp_path, epochs=1)[0][0]
    assert batch.batch_size == (3, 4)
    done = batch[keys.next_(keys.DONE)].squeeze(-1)
    assert done[:, 2].all() and not done[:, :2].any()  # 5 steps are decisions of 2, 2 and 1
    assert batch[keys.next_(keys.NUM_STEPS)][:, :3].squeeze(-1).tolist() == [[2, 2, 1]] * 3
    after, following = batch[keys.next_(keys.IMAGE)], batch[keys.IMAGE][:, 1:]
    assert torch.equal(after[:, :2], following[:, :2])
    assert not torch.equal(after[:, 2], following[:, 2])
    assert (batch[keys.EPISODE_SEED][:, 3] != batch[keys.EPISODE_SEED][:, 2]).all()


def grouped(tmp_path, **settings):
    return rounds(tmp_path, **{"num_envs": 4, "decisions_per_env": 7, "group_size": 2, "max_episode_steps": 5, **settings})


@pytest.mark.parametrize(
    ("task", "mode", "ends"),
    [("PushCube-v1", "stage", True), ("PushCube-v1", "dense", False), ("PutCarrotOnPlateInScene-v1", "stage", False)],
)
def test_an_episode_ends_at_success_unless_the_last_step_counts_or_every_step_is_paid(task, mode, ends):
    assert RolloutDataModule(task, reward=RewardConfig(mode=mode))._settings["terminate_on_success"] is ends
    assert RolloutDataModule(task, reward=RewardConfig(mode=mode), terminate_on_success=True)._settings["terminate_on_success"]


def test_groups_share_their_start_and_end_as_they_like(tmp_path):
    """Episodes of 5 steps are 3 decisions of 2, 2 and 1, so 7 hold two waves of 4 environments: 4 groups of 2."""
    (first, second), data = grouped(tmp_path)
    assert first.batch_size == (8, 3)
    seeds = first[keys.EPISODE_SEED][:, 0].view(4, 2)
    assert (seeds[:, 0] == seeds[:, 1]).all() and seeds[:, 0].unique().numel() == 4 and not torch.equal(seeds, second[keys.EPISODE_SEED][:, 0].view(4, 2))
    start, tokens = first[keys.IMAGE][:, 0].unflatten(0, (4, 2)), first[keys.ACTION_TOKENS].unflatten(0, (4, 2))
    assert torch.equal(start[:, 0], start[:, 1]) and not torch.equal(tokens[:, 0], tokens[:, 1])  # the same state, other actions
    assert ((0 <= seeds) & (seeds < 1_000_000)).all()  # training seeds
    assert first["mask"].all() and first[keys.next_(keys.DONE)][:, -1].all() and not first[keys.next_(keys.DONE)][:, :-1].any()
    assert data.env_steps == 2 * 8 * 5


def test_a_grouped_round_depends_on_its_number_alone(tmp_path):
    first, _ = grouped(tmp_path)
    torch.manual_seed(99)
    resumed, _ = grouped(tmp_path, epochs=1, state={"round": 1, "env_steps": 7})
    assert same(resumed[0], first[1]) and not same(first[0], first[1])


def test_bad_groups_are_refused(tmp_path):
    for settings in ({"group_size": 3}, {"group_size": 1}):
        with pytest.raises(ValueError, match=f"group_size={settings['group_size']}.*num_envs=4 must be a multiple"):
            RolloutDataModule("Toy-v0", num_envs=4, **settings)
    with pytest.raises(ValueError, match="group_size=2 with device='cuda': scenes of a GPU batch do not start alike"):
        RolloutDataModule("PushCube-v1", num_envs=4, group_size=2, device="cuda")
    with pytest.raises(ValueError, match="decisions_per_env=2: group_size=2 takes whole episodes, of up to 3 decisions"):
        grouped(tmp_path, decisions_per_env=2)


@pytest.mark.parametrize("name", ["num_envs", "decisions_per_env", "temperature"])
def test_bad_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        RolloutDataModule("Toy-v0", **{name: 0})


def test_meshes_of_the_toy_are_refused(tmp_path):
    with pytest.raises(ValueError, match="visuals='light': Toy-v0 is drawn without meshes"):
        RolloutDataModule("Toy-v0", visuals="light")
    assert RolloutDataModule("PushCube-v1", visuals="light")._settings["visuals"] == "light"


@pytest.mark.parametrize("name", ["image_size", "max_episode_steps"])
def test_a_zero_is_not_taken_for_the_default(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        rounds(tmp_path, **{name: 0})
    assert RolloutDataModule("PushCube-v1", **{name: 0})._settings[name] == 0  # for the simulator to refuse
