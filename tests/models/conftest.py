"""Small policies, fast enough for the CPU, and observations for them."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny

STATE_DIM = 6
PUSH, STACK = "push the blue cube to the red and white target", "stack the red cube on the green cube"


@pytest.fixture(params=["parallel", "autoregressive"])
def policy(request: pytest.FixtureRequest) -> VLAPolicy:
    """A one-eighth tiny policy in either decoding, with logits far enough from flat for a meaningful argmax."""
    return build(request.param)


def build(decoding: str = "parallel", **kwargs: object) -> VLAPolicy:
    torch.manual_seed(0)
    settings = {"image_size": 32, "chunk_size": 2, "hidden_size": 64, "num_layers": 2, "num_bins": 16}
    policy = tiny(STATE_DIM, decoding=decoding, **{**settings, **kwargs})
    with torch.no_grad():
        policy.language_model.lm_head.weight.mul_(4.0)
        policy.value_head.mlp[-1].weight.normal_()  # a value that depends on its inputs
    return policy


@pytest.fixture
def make_policy() -> Callable[..., VLAPolicy]:
    return build


@pytest.fixture
def observe() -> Callable[..., TensorDict]:
    """Random observations of a batch shape, every second with another instruction."""

    def make(*batch: int, seed: int = 0, size: int = 32) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        num = int(torch.Size(batch).numel())
        td = TensorDict(
            {
                keys.IMAGE: torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator),
                keys.STATE: torch.randn(num, STATE_DIM, generator=generator),
                keys.signal("tcp_to_object"): torch.rand(num, generator=generator),
                keys.signal("grasped"): torch.rand(num, generator=generator).round(),
            },
            [num],
        )
        td[keys.INSTRUCTION] = [PUSH if i % 2 == 0 else STACK for i in range(num)]
        return td.reshape(batch) if batch else td[0]

    return make
