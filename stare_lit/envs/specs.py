"""TorchRL specs of a simulated task, from what one observation of it looks like."""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded

from stare_lit import keys

MAX_SEED = 2**31 - 1


def _like(value: Tensor) -> Any:
    if value.dtype == torch.uint8:
        return Bounded(0, 255, shape=value.shape, dtype=torch.uint8, device=value.device)
    return Unbounded(shape=value.shape, dtype=value.dtype, device=value.device)


def _tree(tensordict: TensorDictBase) -> Composite:
    content = {name: _tree(value) if isinstance(value, TensorDictBase) else _like(value) for name, value in tensordict.items()}
    return Composite(content, shape=tensordict.batch_size, device=tensordict.device)


def set_specs(env: Any, observed: TensorDictBase, *, num_instructions: int, action_limit: tuple[float, ...], dense_reward: bool) -> None:
    """Give ``env`` (batch ``[*B]``, with a ``chunk_size``) the specs of its observation, outcome, action, reward and end (see ``stare_lit.keys``).

    Args:
        observed: an observation with its signals, batch size ``[*B]``.
        action_limit: greatest absolute value of each number of an action.
    """
    batch, device = env.batch_size, env.device
    flag = Binary(shape=(*batch, 1), dtype=torch.bool, device=device)
    scalar = Unbounded(shape=(*batch, 1), device=device)
    spec = _tree(observed)
    spec[keys.INSTRUCTION_ID] = Categorical(num_instructions, shape=batch, dtype=torch.int64, device=device)
    spec[keys.EPISODE_SEED] = Bounded(0, MAX_SEED, shape=batch, dtype=torch.int64, device=device)
    spec[keys.SUCCESS] = flag.clone()
    spec[keys.NUM_STEPS] = Bounded(0, env.chunk_size, shape=(*batch, 1), dtype=torch.int64, device=device)
    spec[keys.STEP_REWARD] = Unbounded(shape=(*batch, env.chunk_size), device=device)
    if dense_reward:
        spec[keys.DENSE_REWARD] = spec[keys.STEP_REWARD].clone()
    env.observation_spec = spec
    limit = torch.tensor(action_limit, device=device).expand(*batch, env.chunk_size, -1)
    low_high = Bounded(-limit, limit, shape=limit.shape, device=device)
    env.action_spec = Composite({keys.VLA_ACTION: Composite(chunk=low_high, shape=batch, device=device)}, shape=batch, device=device)
    env.reward_spec = scalar
    env.done_spec = Composite({key: flag.clone() for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)}, shape=batch, device=device)
