"""Operations of a decision: what torch itself counts, and the size of the real thing."""

import dataclasses

import pytest
import torch
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, add_adapter
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.flops import decision_flops
from stare_lit.models.vla.presets import openvla_7b_config, openvla_tiny_config, tiny


@pytest.mark.parametrize("lora", [False, True])
def test_they_are_those_that_torch_counts(lora):
    config = openvla_tiny_config()
    config = dataclasses.replace(config, llm={**config.llm, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}, prompt_length=40)
    policy = VLAPolicy(config)
    if lora:
        add_adapter(policy, LoraSettings(rank=4))
        policy.value_head.requires_grad_(True)
    batch = TensorDict({keys.IMAGE: torch.zeros(2, 3, 56, 56, dtype=torch.uint8), keys.INSTRUCTION_TOKENS: torch.ones(2, 40, dtype=torch.int64)}, [2])
    batch[keys.ACTION_TOKENS] = torch.zeros(2, 1, 7, dtype=torch.int64)
    expected = decision_flops(policy, prompt_length=40, value=True)
    with FlopCounterMode(display=False) as counter:
        out = policy.evaluate_actions(batch, value=True)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        (out["log_probs"].sum() + out["state_value"].sum()).backward()
    assert expected.positions == 1 + 16 + 40 + 6
    assert 2 * expected.forward == pytest.approx(forward, rel=0.05)
    # towers of two blocks, the first of which needs no gradient of its input: with frozen weights that is a larger part
    assert 2 * (expected.training - expected.forward) == pytest.approx(counter.get_total_flops(), rel=0.1 if lora else 0.05)


def test_openvla_7b():
    """2 FLOPs a weight and position: 6.5e9 in the language model's blocks, 7e8 in towers of 256 patches."""
    with torch.device("meta"):
        policy = VLAPolicy(openvla_7b_config())
    flops = decision_flops(policy, prompt_length=22, value=True)
    assert flops.positions == 285
    assert flops.forward == pytest.approx(2 * (6.48e9 * 285 + 0.70e9 * 256), rel=0.03)
    assert flops.training == pytest.approx(3 * flops.forward, rel=0.001)
    policy.requires_grad_(False)
    assert decision_flops(policy, prompt_length=22, value=True).training == pytest.approx(2 * flops.forward, rel=0.03)


def test_other_towers_are_refused():
    with pytest.raises(ValueError, match="conv_stem"):
        decision_flops(tiny(0), prompt_length=5, value=False)
