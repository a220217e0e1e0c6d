"""The toy environment: its specs, its seeds, its chunks and its resets."""

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.utils import check_env_specs

from stare_lit import keys
from stare_lit.envs import toy_world as world
from stare_lit.envs.toy import ToyEnv
from stare_lit.stages.tasks import get_spec


def random_chunks(env: ToyEnv, num: int, seed: int = 0) -> torch.Tensor:
    """[num, N, H, 7]; the gripper opens and shuts now and then."""
    return torch.rand(num, *env.batch_size, env.chunk_size, env.action_dim, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def roll(env: ToyEnv, chunks: torch.Tensor, seeds: list[int]) -> TensorDictBase:
    """[N, T] without resets."""
    tensordict, rows = env.reset(seed=seeds), []
    for chunk in chunks:
        tensordict = env.step(tensordict.set(keys.ACTION_CHUNK, chunk))
        rows.append(tensordict.clone())
        tensordict = env._step_mdp(tensordict)
    return torch.stack(rows, 1)


def place_block(env: ToyEnv, place: torch.Tensor, **changes: torch.Tensor) -> None:
    """Puts the blocks [N, 3] somewhere."""
    env._state = world.ToyState(**{**vars(env.world_state), "block": place, **changes})


@pytest.mark.parametrize(
    "settings", [{}, {"observation": "state"}, {"chunk_size": 3, "dense_reward": True, "terminate_on_success": False}, {"image_size": 17, "num_envs": 1}]
)
def test_specs(settings: dict) -> None:
    check_env_specs(ToyEnv(**{"num_envs": 3, **settings}), seed=0)


def test_keys_and_attributes() -> None:
    env = ToyEnv(2, chunk_size=3)
    out = env.rand_step(env.reset())
    assert out["next", "observation", "image"].shape == (2, 3, 32, 32) and out["next", "observation", "image"].dtype == torch.uint8
    assert out["next", keys.STEP_REWARD].shape == (2, 3) and out["next", keys.NUM_STEPS].tolist() == [[3], [3]]
    assert tuple(out["next", "signals"].keys()) == env.signal_names and all(v.dtype == torch.float32 for v in out["signals"].values())
    assert get_spec(env.task).signals <= set(env.signal_names)
    assert len(set(env.instructions)) == 2 and env.max_episode_steps == 30 and env.action_dim == 7


def test_state_observation_has_no_picture() -> None:
    assert list(ToyEnv(2, observation="state").reset()["observation"].keys()) == ["state"]


@pytest.mark.parametrize("settings", [{"num_envs": 0}, {"chunk_size": 0}, {"observation": "pixels"}, {"seed_range": (5, 5)}, {"max_episode_steps": 0}])
def test_bad_settings(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ToyEnv(**settings)


def test_same_seed_same_trajectory_whatever_the_place_in_the_batch() -> None:
    env = ToyEnv(3)
    chunks = random_chunks(env, 8)
    first = roll(env, chunks, [11, 12, 13])
    again = roll(ToyEnv(3), chunks.flip(1), [13, 12, 11])
    assert (first == again.flip(0)).all()
    assert first[:, 0][keys.EPISODE_SEED].tolist() == [11, 12, 13]
    assert not torch.equal(first[0]["observation", "image"], first[1]["observation", "image"])


def test_own_generator_draws_from_the_range() -> None:
    def draws(env: ToyEnv) -> list[int]:
        env.set_seed(3)
        return [seed for _ in range(5) for seed in env.reset()[keys.EPISODE_SEED].tolist()]

    seeds = draws(ToyEnv(4, seed_range=(100, 110)))
    assert seeds == draws(ToyEnv(4, seed_range=(100, 110))) and set(seeds) <= set(range(100, 110)) and len(set(seeds)) > 3


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], [1, -1]])
def test_bad_seeds(seed: list[int]) -> None:
    with pytest.raises(ValueError, match="seed"):
        ToyEnv(2).reset(seed=seed)


def test_partial_reset_leaves_the_others_alone() -> None:
    env = ToyEnv(3)
    before = env._step_mdp(env.rand_step(env.reset(seed=[1, 2, 3])))
    kept = before.clone()
    after = env.reset(before.set("_reset", torch.tensor([[False], [True], [False]])), seed=[9])
    assert after[keys.EPISODE_SEED].tolist() == [1, 9, 3]
    assert (after[[0, 2]] == kept[[0, 2]]).all()
    assert env.world_state.steps.tolist() == [1, 0, 1]
    fresh = ToyEnv(1).reset(seed=9)
    assert torch.equal(after[1]["observation", "image"], fresh[0]["observation", "image"])


def test_the_observation_before_a_reset_is_kept() -> None:
    env = ToyEnv(2, max_episode_steps=2)
    tensordict = env.reset(seed=[1, 2])
    for _ in range(2):
        last, tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))
    assert last["next", keys.TRUNCATED].all() and not last["next", keys.TERMINATED].any() and not tensordict[keys.DONE].any()
    assert last["next", keys.EPISODE_SEED].tolist() == [1, 2] != tensordict[keys.EPISODE_SEED].tolist()
    assert not torch.equal(last["next", "observation", "image"], tensordict["observation", "image"])


def test_chunk_equals_single_steps() -> None:
    chunked, single = ToyEnv(4, chunk_size=3), ToyEnv(4)
    chunks = random_chunks(chunked, 2)
    a = roll(chunked, chunks, [1, 2, 3, 4])
    b = roll(single, chunks.transpose(1, 2).flatten(0, 1)[:, :, None], [1, 2, 3, 4])
    assert torch.equal(a["next", "observation", "image"], b["next", "observation", "image"][:, 2::3])


@pytest.mark.parametrize("terminate", [True, False])
def test_success_inside_a_chunk(terminate: bool) -> None:
    """A block dropped over its pad lies there after one step; another one lies far off."""
    env = ToyEnv(2, chunk_size=3, terminate_on_success=terminate, max_episode_steps=5)
    tensordict = env.reset(seed=[1, 2])
    over = env.world_state.target.clone()
    over[:, 2] = 0.05
    over[1] = env.world_state.block[1]
    place_block(env, over)
    still = torch.zeros(2, 3, 7)
    still[..., 6] = 1.0
    out = env.step(tensordict.set(keys.ACTION_CHUNK, still))["next"]
    assert out[keys.SUCCESS].tolist() == [[True], [False]] and out[keys.TERMINATED].tolist() == [[terminate], [False]]
    assert out[keys.STEP_REWARD].tolist() == [[1, 0, 0], [0, 0, 0]] and out[keys.NUM_STEPS].tolist() == [[1 if terminate else 3], [3]]
    out = env.step(env._step_mdp(TensorDict({"next": out}, [2])).set(keys.ACTION_CHUNK, still))["next"]
    assert out[keys.NUM_STEPS][1].item() == 2 and out[keys.TRUNCATED][1].item() and not out[keys.TERMINATED][1].item()


def test_lost_success_is_paid_back() -> None:
    env = ToyEnv(1, terminate_on_success=False)
    tensordict = env.reset(seed=1)
    place_block(env, env.world_state.target, tcp=env.world_state.target)
    action = torch.zeros(1, 1, 7)
    rewards = []
    for gripper in (1.0, -1.0):
        action[..., 6] = gripper
        rewards.append(env.step(tensordict.set(keys.ACTION_CHUNK, action))["next", keys.REWARD].item())
    assert rewards == [1.0, -1.0]


def test_a_skipped_row_stays_where_it_is() -> None:
    env = ToyEnv(2)
    tensordict = env.reset(seed=[1, 2])
    out = env.rand_action(tensordict).set("_step", torch.tensor([True, False]))
    out = env.step(out)["next"]
    assert out[keys.NUM_STEPS].tolist() == [[1], [0]] and env.world_state.steps.tolist() == [1, 0]


def test_a_shut_gripper_grasps_nothing_and_an_opened_one_drops() -> None:
    env = ToyEnv(1)
    env.reset(seed=1)
    state = env.world_state
    at_block = world.ToyState(**{**vars(state), "tcp": state.block, "closed": torch.tensor([True])})
    shut = torch.tensor([[0, 0, 1, 0, 0, 0, -1.0]])
    assert not world.advance(at_block, shut).held
    grasped = world.advance(world.ToyState(**{**vars(at_block), "closed": torch.tensor([False])}), shut * torch.tensor([1, 1, 0, 1, 1, 1, 1]))
    lifted = world.advance(grasped, shut)
    assert grasped.held and torch.isclose(world.measure(lifted)["lift"], torch.tensor([world.MAX_DELTA]))
    dropped = world.advance(lifted, -shut)
    assert not dropped.held and world.measure(dropped)["lift"] == 0


def test_both_instructions_occur_and_only_the_pad_asked_for_counts() -> None:
    state = world.initial_state(range(200))
    assert 60 < state.instruction.sum() < 140
    other = world.ToyState(**{**vars(state), "instruction": 1 - state.instruction})
    on_pad = world.ToyState(**{**vars(state), "block": state.target})
    still = torch.tensor([0, 0, 0, 0, 0, 0, 1.0]).expand(200, 7)
    assert world.advance(on_pad, still).success.all()
    assert not world.advance(world.ToyState(**{**vars(other), "block": state.target}), still).success.any()
    assert torch.equal(world.render(state, 32), world.render(other, 32))  # only the words tell them apart


def test_height_shows_in_the_picture() -> None:
    state = world.initial_state([1])
    raised = world.ToyState(**{**vars(state), "block": state.block + torch.tensor([0, 0, 0.05])})
    assert not torch.equal(world.render(state, 32), world.render(raised, 32))
