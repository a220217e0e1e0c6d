"""run_episodes: order, masks, padding, waves, against an environment whose episode lengths are known."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs import rollout
from stare_lit.envs.rollout import MASK, run_episodes


class Countdown(EnvBase):
    """Episode ``seed`` ends after ``seed`` decisions and goes on below zero."""

    def __init__(self, num_envs: int):
        super().__init__(batch_size=[num_envs])
        shape = (num_envs,)
        self.observation_spec = Composite({"observation": {"state": Unbounded((num_envs, 1))}, "stage_index": Unbounded(shape, dtype=torch.int64)}, shape=shape)
        self.action_spec = Composite({"vla_action": {"chunk": Bounded(-1, 1, (num_envs, 1, 2))}}, shape=shape)
        self.reward_spec = Unbounded((num_envs, 1))

    def _set_seed(self, seed):
        pass

    def _reset(self, tensordict=None, seed=None, **kwargs):
        self.left = torch.as_tensor(seed).clone()
        return self._observe()

    def _observe(self):
        done = (self.left <= 0).unsqueeze(-1)
        values = {("observation", "state"): self.left.float().unsqueeze(-1), "stage_index": self.left.clone(), "done": done, "terminated": done.clone()}
        return TensorDict(values, self.batch_size)

    def _step(self, tensordict):
        self.left = self.left - 1
        return self._observe().set("reward", torch.full((*self.batch_size, 1), 7.0))


@pytest.fixture(autouse=True)
def plain_seeded_reset(monkeypatch):
    monkeypatch.setattr(rollout, "seeded_reset", lambda env, seeds, exact: env.reset(seed=torch.as_tensor(seeds)))


def act(tensordict):
    return tensordict.set(keys.ACTION_CHUNK, torch.zeros(*tensordict.shape, 1, 2))


def test_rows_follow_the_seeds_over_waves_and_are_padded():
    env, finished = Countdown(2), []
    seeds = [3, 1, 2, 2, 5]
    episodes = run_episodes(env, act, seeds, progress=finished.append)
    assert episodes.shape == (5, 5)
    assert episodes[MASK].sum(1).tolist() == seeds
    assert finished == [2, 2, 1]
    assert episodes[keys.STATE][0, :, 0].tolist() == [3, 2, 1, 0, 0]
    assert episodes["next", "reward"][1, :, 0].tolist() == [7, 0, 0, 0, 0]
    assert episodes[keys.STAGE_INDEX][1].tolist() == [1, -1, -1, -1, -1]
    assert episodes["next", keys.STAGE_INDEX][2].tolist() == [1, 0, -1, -1, -1]
    assert episodes["next", "done"][torch.arange(5), torch.tensor(seeds) - 1].all()


def test_max_decisions_cuts_and_keep_selects():
    episodes = run_episodes(Countdown(2), act, [5, 1], max_decisions=2, keep=[("next", "reward"), "absent"])
    assert episodes.shape == (2, 2)
    assert episodes[MASK].tolist() == [[True, True], [True, False]]
    assert set(episodes.keys(True, True)) == {MASK, ("next", "reward")}


@pytest.mark.parametrize(("arguments", "message"), [({"seeds": []}, "seeds is empty"), ({"seeds": [1], "max_decisions": 0}, "max_decisions=0")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_episodes(Countdown(1), act, **arguments)
