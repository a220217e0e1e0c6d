"""Blocks that are run again in the backward pass: the same gradients from less memory, and nothing else changes."""

import copy

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.checkpointing import checkpoint_blocks
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import openvla_tiny_config


def module(checkpointing: bool, lora: LoraSettings | None) -> StaPPOModule:
    torch.manual_seed(0)
    made = StaPPOModule(VLAPolicy(openvla_tiny_config()), checkpointing=checkpointing, lora=lora)
    made.configure_model()
    with torch.no_grad():  # a fresh adapter is zero, and so would be the gradients of its first factor
        for name, parameter in made.named_parameters():
            if "lora_B" in name or "value_head" in name:
                parameter.normal_(std=0.1)
    return made


def decisions(num: int = 3) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    td = TensorDict({keys.IMAGE: torch.randint(0, 256, (num, 3, 56, 56), dtype=torch.uint8, generator=generator)}, [num])
    td[keys.INSTRUCTION] = ["push the cube", "stack the red cube on the green cube", "push the cube"]
    td[keys.ACTION_TOKENS] = torch.randint(0, 256, (num, 1, 7), generator=generator)
    return td


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_gradients_are_identical_and_less_is_kept(lora):
    gradients, kept = [], []
    for checkpointing in (False, True):
        made, saved = module(checkpointing, lora), {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = made.policy.evaluate_actions(decisions(), value=True)
        (out["log_probs"].sum() + out[keys.STATE_VALUE].sum()).backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.grad is not None})
        kept.append(sum(saved.values()))
    assert gradients[0].keys() == gradients[1].keys() and any("vision" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    assert kept[1] < 0.6 * kept[0]


def test_decoding_keeps_its_cache_in_training_mode():
    plain, again = (module(checkpointing, None).policy.train() for checkpointing in (False, True))
    tokens = [policy.act(decisions(), temperature=0.0)[keys.LOG_PROBS] for policy in (plain, again)]
    assert torch.equal(*tokens)


def test_a_copy_runs_its_own_blocks_and_a_second_call_changes_nothing():
    policy = module(True, None).policy
    forward = policy.language_model.model.layers[0].forward
    checkpoint_blocks(policy)
    assert policy.language_model.model.layers[0].forward is forward
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in twin.language_model.model.layers.parameters():
            parameter.zero_()
    before, after = (p.evaluate_actions(decisions())["log_probs"] for p in (policy, twin))
    assert not torch.equal(before, after)
    assert policy.state_dict().keys() == VLAPolicy(openvla_tiny_config()).state_dict().keys()
