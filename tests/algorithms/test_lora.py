"""Adapters: what is trained beside them, and in which dtype."""

import torch

from stare_lit.algorithms.lora import LoraSettings, add_adapter, merge_adapter
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.models.vla.presets import tiny


def policy():
    return tiny(0, image_size=32, hidden_size=32, num_layers=1)


def test_interaction_trains_adapter_and_value_head():
    module = StaPPOModule(policy(), lora=LoraSettings(rank=2))
    module.configure_model()
    adapter, value = (group["params"] for group in module.configure_optimizers().param_groups)
    assert {id(parameter) for parameter in value} == {id(parameter) for parameter in module.policy.value_head.parameters()}
    names = {id(parameter): name for name, parameter in module.policy.named_parameters()}
    assert adapter and all("lora_" in names[id(parameter)] for parameter in adapter)


def test_adapters_of_half_precision_weights_are_float32():
    half = policy().to(torch.bfloat16)
    add_adapter(half, LoraSettings(rank=2))
    kinds = {("lora_" in name): parameter.dtype for name, parameter in half.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    layer = half.language_model.model.layers[0].mlp.up_proj
    assert layer(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    merge_adapter(half)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
