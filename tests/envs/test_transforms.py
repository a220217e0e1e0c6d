"""Stage tracker, stage reward and instruction text over real episodes of the toy environment."""

import functools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import Compose
from torchrl.envs.utils import check_env_specs

from stare_lit import keys
from stare_lit.envs import toy_world as world
from stare_lit.envs.toy import ToyEnv
from stare_lit.envs.transforms import InstructionText, RewardConfig, StageReward, StageTracker, stage_transforms
from stare_lit.envs.transforms.reward import SPARSE_REWARD
from stare_lit.experts.toy import ToyExpert
from stare_lit.stages.calculator import potential, whole_task_error
from stare_lit.stages.tasks import get_spec

SPEC = get_spec("Toy-v0")


def make(config: RewardConfig | None = None, num_envs: int = 3, **settings: object) -> TransformedEnv:
    return wrap(ToyEnv(num_envs, **settings), config)


def wrap(env: object, config: RewardConfig | None = None) -> TransformedEnv:
    return TransformedEnv(env, Compose(InstructionText(world.INSTRUCTIONS), *stage_transforms(SPEC, config or RewardConfig())))


def fumbling(env: TransformedEnv, fumbles: float, seed: int) -> Iterator[torch.Tensor]:
    """Expert chunks, planned ahead from the present state, with random actions in between that drop the block."""
    generator, expert = torch.Generator().manual_seed(seed), ToyExpert()
    while True:
        state, chunk = env.world_state, []
        for _ in range(env.chunk_size):
            action = expert.action(state)
            other = torch.rand(action.shape, generator=generator) * 2 - 1
            chunk.append(torch.where(torch.rand(len(action), 1, generator=generator) < fumbles, other, action))
            state = world.advance(state, chunk[-1])
        yield torch.stack(chunk, 1)


def collect(env: TransformedEnv, decisions: int, *, fumbles: float = 0.2, seed: int = 0) -> TensorDictBase:
    """[N, T] with auto-reset."""
    tensordict, rows = env.reset(), []
    actions = fumbling(env, fumbles, seed)
    for _ in range(decisions):
        row, tensordict = env.step_and_maybe_reset(tensordict.set(keys.ACTION_CHUNK, next(actions)))
        rows.append(row.exclude(keys.INSTRUCTION, ("next", keys.INSTRUCTION)).clone())
    return torch.stack(rows, 1)


def episodes(data: TensorDictBase) -> Iterator[TensorDictBase]:
    """The pieces [T_i] between resets, the last of each row cut off by the end of the data."""
    for row in data.unbind(0):
        start = 0
        for t in range(len(row)):
            if row["next", keys.DONE][t] or t == len(row) - 1:
                yield row[start : t + 1]
                start = t + 1


@pytest.mark.parametrize("mode", ["sparse", "dense", "potential", "stage"])
def test_specs(mode: str) -> None:
    check_env_specs(make(RewardConfig(mode=mode), chunk_size=2, dense_reward=mode == "dense"), seed=0)


@settings(max_examples=25, deadline=None)
@given(
    gamma=st.sampled_from([1.0, 0.99, 0.9]),
    chunk=st.integers(1, 4),
    limit=st.integers(3, 30),
    mode=st.sampled_from(["stage", "potential"]),
    stage_mode=st.sampled_from(["cumulative", "bare"]),
    form=st.sampled_from(["sigmoid", "sigmoid_scaled", "linear"]),
    terminal=st.sampled_from(["zero", "keep"]),
    bootstrap=st.booleans(),
    terminate=st.booleans(),
    monotone=st.booleans(),
    shaping_gamma=st.sampled_from([None, 1.0, 0.8]),
    seed=st.integers(0, 10_000),
)
def test_shaping_telescopes(
    gamma: float, chunk: int, limit: int, mode: str, stage_mode: str, form: str, terminal: str, bootstrap: bool, terminate: bool,
    monotone: bool, shaping_gamma: float | None, seed: int,
) -> None:  # fmt: skip
    """sum_t gamma^t F_t = c (gamma^T Phi(s_T) - Phi(s_0)) over every episode, whatever ends it and whoever is reset beside it; gamma is the shaping's."""
    config = RewardConfig(mode, gamma, 0.7, stage_mode, form, terminal, bootstrap, monotone, shaping_gamma)
    gamma = gamma if shaping_gamma is None else shaping_gamma
    env = make(config, chunk_size=chunk, max_episode_steps=limit, terminate_on_success=terminate, observation="state")
    env.set_seed(seed)
    count = 0
    for episode in episodes(collect(env, 24, seed=seed)):
        steps = episode["next", keys.NUM_STEPS].squeeze(-1)
        elapsed = torch.cat([torch.zeros(1), steps.cumsum(0).float()])
        extra = (episode["next", keys.REWARD] - episode["next", SPARSE_REWARD]).squeeze(-1)
        end = episode["next"][-1]
        last = end[keys.POTENTIAL]
        ended = end[keys.TERMINATED].item() or (end[keys.TRUNCATED].item() and not bootstrap)
        if terminal == "zero" and ended:
            last = torch.zeros(())
        expected = 0.7 * (gamma ** elapsed[-1] * last - episode[0][keys.POTENTIAL])
        torch.testing.assert_close((gamma ** elapsed[:-1] * extra).sum(), expected, atol=1e-5, rtol=1e-4)
        assert steps.sum() <= limit
        count += 1
    assert count >= 3


def test_episodes_end_in_both_ways() -> None:
    """The property above is worth something only where episodes of a batch end apart and for different reasons."""
    env = make(chunk_size=2, max_episode_steps=17, observation="state")
    env.set_seed(0)
    data = collect(env, 60)
    assert data["next", keys.TERMINATED].any() and data["next", keys.TRUNCATED].any()
    assert len({tuple(row.nonzero().flatten().tolist()) for row in data["next", keys.DONE].squeeze(-1)}) == 3
    assert {1, 2} == set(data["next", keys.NUM_STEPS].unique().tolist())
    continued = ~data["next", keys.DONE][:, :-1, 0]
    for key in (keys.STAGE_INDEX, keys.POTENTIAL, keys.EPISODE_SEED):
        assert torch.equal(data["next", key][:, :-1][continued], data[key][:, 1:][continued])
    assert (data[keys.STAGE_INDEX][:, 1:][~continued] < 2).all()


def test_discount_inside_a_chunk() -> None:
    env = make(RewardConfig(mode="sparse", gamma=0.5), num_envs=1, chunk_size=3, observation="state", terminate_on_success=False)
    tensordict = env.reset(seed=1)
    env.base_env._state = world.ToyState(**{**vars(env.world_state), "block": env.world_state.target + torch.tensor([0, 0, 0.09])})
    still = torch.zeros(1, 3, 7)
    still[..., 6] = 1.0
    out = env.step(tensordict.set(keys.ACTION_CHUNK, still))["next"]
    assert out[keys.STEP_REWARD].tolist() == [[0, 1, 0]] and out[keys.REWARD].item() == out[SPARSE_REWARD].item() == 0.5


def test_dropping_the_block_takes_the_stage_back() -> None:
    def stages(monotone: bool) -> list[int]:
        env, expert = make(RewardConfig(monotone=monotone), num_envs=1, observation="state"), ToyExpert()
        tensordict, seen = env.reset(seed=3), []
        while not seen or (seen[-1] < 4 and len(seen) < 30):
            action = expert.act(env.base_env)
            if seen[-1:] == [2] and seen.count(2) == 1:  # lifted for the first time
                action[:, 6] = 1.0
            tensordict = env._step_mdp(env.step(tensordict.set(keys.ACTION_CHUNK, action[:, None])))
            seen.append(tensordict[keys.STAGE_INDEX].item())
        return seen

    online = stages(monotone=False)
    assert online[-1] == 4 and online[online.index(2) + 1] < 2
    offline = stages(monotone=True)
    assert offline[-1] == 4 and offline == sorted(offline)


@pytest.mark.parametrize("monotone", [True, False])
def test_a_milestone_stays_paid(monotone: bool) -> None:
    """What an episode was paid so far is at least the stages that it has ended, where nothing is taken back (`configs/ablations/milestones.yaml`)."""
    env = make(RewardConfig(shaping_gamma=1.0, terminal="keep", monotone=monotone, form="linear"), observation="state")
    env.set_seed(0)
    kept = []
    for episode in episodes(collect(env, 60, fumbles=0.3)):
        paid = (episode["next", keys.REWARD] - episode["next", SPARSE_REWARD]).squeeze(-1).cumsum(0) + episode[0][keys.POTENTIAL]
        ended = episode["next", keys.STAGE_INDEX].cummax(0).values / SPEC.num_stages
        kept.append(bool((paid >= ended - 1e-5).all()))
    assert all(kept) == monotone


@pytest.mark.parametrize("mode", ["sparse", "dense", "potential", "stage"])
def test_reward_modes(mode: str) -> None:
    env = make(RewardConfig(mode=mode), dense_reward=True, observation="state")
    env.set_seed(1)
    data = collect(env, 30)
    reward, sparse = data["next", keys.REWARD], data["next", SPARSE_REWARD]
    assert torch.equal(sparse, data["next", keys.STEP_REWARD]) and sparse.sum() > 0
    if mode == "sparse":
        assert torch.equal(reward, sparse)
    elif mode == "dense":
        assert torch.equal(reward, data["next", keys.DENSE_REWARD])
    elif mode == "potential":
        expected = potential(data["signals", "success"].long(), whole_task_error(SPEC, dict(data["signals"].items())), 1, form="sigmoid")
        torch.testing.assert_close(data[keys.POTENTIAL], expected)
        assert not torch.equal(reward, sparse)
    else:
        expected = potential(data[keys.STAGE_INDEX], data[keys.STAGE_ERROR], SPEC.num_stages)
        torch.testing.assert_close(data[keys.POTENTIAL], expected)
        assert not torch.equal(reward, sparse)


def test_the_dense_reward_is_discounted_inside_the_chunk() -> None:
    env = make(RewardConfig(mode="dense", gamma=0.5), chunk_size=3, dense_reward=True, observation="state")
    env.set_seed(1)
    data = collect(env, 10)
    dense = data["next", keys.DENSE_REWARD]
    assert (data["next", keys.NUM_STEPS] == 3).any() and (dense[..., 2] > 0).any()
    torch.testing.assert_close(data["next", keys.REWARD], dense @ torch.tensor([[1.0], [0.5], [0.25]]))


def test_reset_mode_leaves_crossings_unshaped() -> None:
    def shaped(stage_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        env = make(RewardConfig(stage_mode=stage_mode), observation="state")
        env.set_seed(1)
        data = collect(env, 30)
        return (data["next", keys.REWARD] - data["next", SPARSE_REWARD])[..., 0], data[keys.STAGE_INDEX] != data["next", keys.STAGE_INDEX]

    (bare, crossed), (reset, _) = shaped("bare"), shaped("reset")
    assert crossed.any() and (reset[crossed] == 0).all() and (bare[crossed] != 0).any()
    assert torch.equal(reset[~crossed], bare[~crossed])


def test_instruction_follows_its_id_through_partial_resets() -> None:
    env = make(max_episode_steps=4, observation="state")
    env.set_seed(0)
    tensordict = env.reset()
    seen = set()
    for _ in range(30):
        partial = torch.rand(3, 1) < 0.3
        row, tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))
        if partial.any():
            tensordict = env.reset(tensordict.set("_reset", partial))
        for td in (row, row["next"], tensordict):
            assert list(td[keys.INSTRUCTION]) == [world.INSTRUCTIONS[i] for i in td[keys.INSTRUCTION_ID].tolist()]
        seen.update(tensordict[keys.INSTRUCTION])
    assert seen == set(world.INSTRUCTIONS)


@pytest.mark.parametrize("batched", [SerialEnv, ParallelEnv])
def test_over_several_processes(batched: type) -> None:
    """The transforms stand in the parent; rows are those of one batched environment."""
    settings = {"mp_start_method": "fork"} if batched is ParallelEnv else {}
    envs = batched(2, functools.partial(ToyEnv, 1, chunk_size=2, max_episode_steps=6), **settings)
    env = wrap(envs)
    try:
        tensordict = env.reset(list_of_kwargs=[{"seed": 5}, {"seed": 6}])
        assert tensordict[keys.STAGE_INDEX].numel() == 2
        assert tensordict[keys.EPISODE_SEED].flatten().tolist() == [5, 6]
        rows = []
        for _ in range(8):
            row, tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))
            rows.append(row.exclude(keys.INSTRUCTION, ("next", keys.INSTRUCTION)).clone())
        data = torch.stack(rows, -1)
        assert data["next", keys.DONE].any() and torch.isfinite(data["next", keys.REWARD]).all()
    finally:
        env.close()


def test_collector_runs_over_the_transformed_environment() -> None:
    env = make(chunk_size=2, max_episode_steps=6, num_envs=2)
    collector = Collector(lambda: env, None, frames_per_batch=16, total_frames=32)
    try:
        batches = list(collector)
    finally:
        collector.shutdown()
    assert len(batches) == 2
    for data in batches:
        assert data.shape == (2, 8) and data["next", keys.DONE].any()
        inside = ~data["next", keys.DONE][:, :-1, 0]
        assert torch.equal(data["next", keys.STAGE_INDEX][:, :-1][inside], data[keys.STAGE_INDEX][:, 1:][inside])


def test_missing_parts_are_named() -> None:
    with pytest.raises(ValueError, match="StageTracker before"):
        TransformedEnv(ToyEnv(1), StageReward(RewardConfig())).reward_spec  # noqa: B018
    with pytest.raises(ValueError, match="dense_reward=True"):
        make(RewardConfig(mode="dense")).reward_spec  # noqa: B018
    with pytest.raises(ValueError, match="does not publish"):
        TransformedEnv(ToyEnv(1), StageTracker(get_spec("PushCube-v1"))).observation_spec  # noqa: B018
    with pytest.raises(ValueError, match="stage travels"):
        env = make()
        env.step(env.rand_action(env.reset().exclude(keys.STAGE_INDEX)))


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "shaped"}, {"stage_mode": "none"}, {"form": "log"}, {"terminal": "drop"}, {"gamma": 1.5}, {"shaping_gamma": -0.1},
        {"shaping_gamma": 1.0, "mode": "sparse"}, {"coefficient": -0.1}, {"coefficient": float("inf")}, {"coefficient": float("nan")},
    ],
)  # fmt: skip
def test_bad_config(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RewardConfig(**bad)
