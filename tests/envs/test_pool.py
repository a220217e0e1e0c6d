"""EnvironmentPool, against a counting environment: whose turn it is, which rows start anew, what happens when a worker fails."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs, step_mdp

from stare_lit import keys
from stare_lit.envs.pool import EnvironmentPool
from stare_lit.envs.rollout import MASK, run_episodes

RAISES, HANGS = 0.75, 0.5  # actions that make a worker fail


class Counter(EnvBase):
    """The episode of seed s ends after s % 4 + 1 decisions. The state is (seed, decisions of this episode, decisions ever simulated)."""

    chunk_size, action_dim, instructions, signal_names, max_episode_steps, seed_range = 1, 2, ("count",), ("success",), 4, (100, 104)

    def __init__(self):
        super().__init__(batch_size=[])
        flag = Binary(shape=(1,), dtype=torch.bool)
        self.observation_spec = Composite(
            {
                keys.OBSERVATION: Composite(state=Unbounded((3,))),
                keys.STEP_REWARD: Unbounded((1,)),
                keys.NUM_STEPS: Bounded(0, 1, (1,), dtype=torch.int64),
                "exact": Binary(shape=(), dtype=torch.bool),
            }
        )
        self.action_spec = Composite({keys.VLA_ACTION: Composite(chunk=Bounded(-1, 1, (1, 2)))})
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite({key: flag.clone() for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)})
        self.state, self.exact = torch.zeros(3), False

    def _set_seed(self, seed):
        pass

    def _observe(self, num_steps):
        reward = torch.full((1,), float(num_steps))
        values = {keys.STATE: self.state.clone(), keys.STEP_REWARD: reward, keys.NUM_STEPS: torch.tensor([num_steps]), "exact": torch.tensor(self.exact)}
        return TensorDict(values, [])

    def _reset(self, tensordict=None, *, seed, exact):
        self.state[:2], self.exact = torch.tensor([float(seed), 0.0]), exact
        return self._observe(0)

    def _step(self, tensordict):
        return TensorDict(self.decide(tensordict[keys.ACTION_CHUNK]), [])

    def decide(self, chunk):
        action = float(chunk[0, 0])
        if action == RAISES:
            raise KeyError("no such cube")
        if action == HANGS:
            time.sleep(60)
        self.state[1:] += 1
        done = torch.tensor([bool(self.state[1] > self.state[0] % 4)])
        outcome = {keys.REWARD: torch.ones(1), keys.DONE: done, keys.TERMINATED: done, keys.TRUNCATED: torch.zeros_like(done)}
        return self._observe(1).update(outcome).to_dict()


class Impossible(Counter):
    def __init__(self):
        raise ValueError("task='Nothing-v1' is unknown")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(params=[0, 2], ids=["in this process", "two workers"], scope="module")
def pool(request):
    env = EnvironmentPool(Counter, 4, request.param)
    pids = [process.pid for process in env._processes]
    assert len(pids) == request.param and all(alive(pid) for pid in pids)
    yield env
    env.close()
    env.close()  # twice does no harm
    assert not any(alive(pid) for pid in pids)


def decide(tensordict, first=0.0):
    action = torch.zeros(*tensordict.shape, 1, 2)
    action[..., 0, 0] = torch.as_tensor(first)
    return tensordict.set(keys.ACTION_CHUNK, action)


def column(tensordict, which):
    return tensordict[keys.STATE][:, which].tolist()


def test_specs(pool):
    check_env_specs(pool, seed=0)
    assert pool.batch_size == (4,) and pool.seed_range == (100, 104) and pool.instructions == ("count",)


def test_a_partial_reset_resets_its_rows_only(pool):
    td = step_mdp(pool.step(decide(pool.reset(seed=[3, 7, 11, 15]))))
    mask = torch.tensor([[False], [True], [False], [False]])  # row 1 shares its worker with row 0: the trap
    again = pool.reset(td.clone().set("_reset", mask), seed=[2])
    assert column(again, 0) == [3, 2, 11, 15] and column(again, 1) == [1, 0, 1, 1]
    after = pool.step(decide(again))["next"]
    assert column(after, 1) == [2, 1, 2, 2]


def test_the_state_before_an_auto_reset_is_kept(pool):
    td = pool.reset(seed=[4, 3, 8, 7])  # rows 0 and 2 end after one decision, the others after four
    stepped, root = pool.step_and_maybe_reset(decide(td))
    assert stepped["next", "done"].flatten().tolist() == [True, False, True, False]
    assert column(stepped["next"], 0) == [4, 3, 8, 7] and column(stepped["next"], 1) == [1, 1, 1, 1]
    assert column(root, 1) == [0, 1, 0, 1] and not root["done"].any()
    drawn = column(root, 0)
    assert drawn[1] == 3 and drawn[3] == 7 and {drawn[0], drawn[2]} <= {100, 101, 102, 103}
    assert root["num_steps"].flatten().tolist() == [0, 1, 0, 1] and root["exact"].tolist() == [False, True, False, True]


def test_rows_that_rest_stay_as_they_are_and_earn_nothing(pool):
    first = step_mdp(pool.step(decide(pool.reset(seed=[3, 7, 11, 15]))))
    ever = first[keys.STATE][:, 2]
    out = pool.step(decide(first).set("_step", torch.tensor([False, True, False, False])))["next"]
    assert column(out, 1) == [1, 2, 1, 1] and (out[keys.STATE][:, 2] - ever).tolist() == [0, 1, 0, 0]
    for key in (keys.REWARD, keys.STEP_REWARD, keys.NUM_STEPS):
        assert out[key].flatten().tolist() == [0, 1, 0, 0], key


def test_run_episodes_simulates_nothing_after_an_end(pool):
    before = sum(column(pool.reset(seed=[0, 0, 0, 0]), 2))
    episodes = run_episodes(pool, decide, [3, 0, 1, 2])
    assert episodes[MASK].sum(1).tolist() == [4, 1, 2, 3]
    assert sum(column(pool.reset(seed=[0, 0, 0, 0]), 2)) - before == 4 + 1 + 2 + 3
    assert "_step" not in episodes.keys()
    assert episodes["next", "reward"].sum(1).flatten().tolist() == [4, 1, 2, 3]


def test_drawn_seeds_do_not_depend_on_the_workers(pool):
    pool.set_seed(3)
    first = pool.reset()
    expected = torch.randint(100, 104, (4,), generator=torch.Generator().manual_seed(3)).tolist()
    assert column(first, 0) == expected and first["exact"].all()
    assert not pool.reset()["exact"].any()  # later ones need not rebuild a simulator


def test_a_seeded_start_need_not_rebuild(pool):
    cheap = EnvironmentPool(Counter, 4, 0, rebuild_on_seed=False)
    pool.set_seed(3)
    cheap.set_seed(3)
    first = cheap.reset()
    assert column(first, 0) == column(pool.reset(), 0)  # the same episodes
    assert not first["exact"].any()
    assert cheap.reset(seed=[100, 101, 102, 103])["exact"].all()  # evaluation is exact in any case
    assert not cheap.reset(seed=[100, 101, 102, 103], exact=False)["exact"].any()  # unless it is told not to be


def test_one_seed_for_each_episode(pool):
    with pytest.raises(ValueError, match="seed has 3 entries but 4 episodes start"):
        pool.reset(seed=[1, 2, 3])


def test_workers_must_divide_the_environments():
    with pytest.raises(ValueError, match="num_envs=3 does not divide over num_workers=2"):
        EnvironmentPool(Counter, 3, 2)


def test_an_error_while_making_an_environment_is_the_same_error_here():
    with pytest.raises(ValueError, match="^task='Nothing-v1' is unknown$"):
        EnvironmentPool(Impossible, 1, 1)


@pytest.mark.parametrize("fault", ["killed", "raises", "hangs"])
def test_a_worker_that_fails_is_one_clear_error_and_leaves_no_process(fault):
    env = EnvironmentPool(Counter, 1, 1, step_timeout=1.0 if fault == "hangs" else 60.0)
    pids = [process.pid for process in env._processes]
    td = env.reset(seed=[3])
    if fault == "killed":
        os.kill(pids[0], signal.SIGKILL)
    message = {
        "killed": r"worker 0 has died \(exit code -9\)",
        "raises": "worker 0 failed:(.|\n)*KeyError: 'no such cube'",
        "hangs": "did not answer within 1 s",
    }
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message[fault]):
        env.step(decide(td, {"killed": 0.0, "raises": RAISES, "hangs": HANGS}[fault]))
    assert time.monotonic() - started < 30
    assert not any(alive(pid) for pid in pids)
    env.close()


def hang_in_a_worker(connection):
    env = EnvironmentPool(Counter, 1, 1)
    td = decide(env.reset(seed=[3]), HANGS)
    connection.send(env._processes[0].pid)
    env.step(td)


def test_a_worker_that_hangs_ends_with_its_killed_parent():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=hang_in_a_worker, args=(theirs,))
    parent.start()
    assert ours.poll(120)
    worker = psutil.Process(ours.recv())
    time.sleep(0.5)  # by now it hangs
    parent.kill()
    parent.join()
    worker.wait(10)


def test_timeouts_are_checked():
    with pytest.raises(ValueError, match="step_timeout=0"):
        EnvironmentPool(Counter, 1, 0, step_timeout=0)
