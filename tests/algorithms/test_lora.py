"""Adapters: what is trained beside them, and in which dtype."""

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, add_adapter, merge_adapter
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.models.vla.presets import tiny


def policy():
    return tiny(0, image_size=32, hidden_size=32, num_layers=1)


def test_interaction_trains_adapter_and_value_head():
    module = StaPPOModule(policy(), lora=LoraSettings(rank=2))
    module.configure_model()
    adapter, value = (group["params"] for group in module.configure_optimizers()["optimizer"].param_groups)
    assert {id(parameter) for parameter in value} == {id(parameter) for parameter in module.policy.value_head.parameters()}
    names = {id(parameter): name for name, parameter in module.policy.named_parameters()}
    assert adapter and all("lora_" in names[id(parameter)] for parameter in adapter)


def test_a_head_that_is_the_input_embedding_gets_no_adapter():
    """Merged, it would change what the policy reads; what was trained is what is saved."""
    torch.manual_seed(0)
    tied = policy()
    tied.language_model.lm_head.weight = tied.language_model.model.embed_tokens.weight
    add_adapter(tied, LoraSettings(rank=2))
    names = [name for name, parameter in tied.named_parameters() if "lora_" in name]
    assert names and not any("lm_head" in name for name in names)
    for name in names:
        torch.nn.init.normal_(tied.get_parameter(name))
    seen = TensorDict({keys.IMAGE: torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)}, batch_size=[4])
    seen[keys.INSTRUCTION] = ["push the cube"] * 4
    tied.eval().act(seen, temperature=1.0)
    with torch.no_grad():
        before = tied.evaluate_actions(seen)["log_probs"]
        merge_adapter(tied)
        torch.testing.assert_close(tied.evaluate_actions(seen)["log_probs"], before, atol=1e-4, rtol=0)


def test_adapters_of_half_precision_weights_are_float32():
    half = policy().to(torch.bfloat16)
    add_adapter(half, LoraSettings(rank=2))
    kinds = {("lora_" in name): parameter.dtype for name, parameter in half.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    layer = half.language_model.model.layers[0].mlp.up_proj
    assert layer(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    merge_adapter(half)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_where_and_how_adapters_start_is_rl4vlas():
    """The output head has one too, the value head none; the first factor is Gaussian of deviation 1 / rank, the second zero."""
    adapted = policy()
    add_adapter(adapted, LoraSettings(rank=4))
    weights = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert any(name.startswith("language_model.lm_head.") for name in weights)
    assert not any(name.startswith("value_head") for name in weights)
    first = torch.cat([parameter.flatten() for name, parameter in weights.items() if "lora_A" in name])
    assert first.std().item() == pytest.approx(0.25, rel=0.1)
    assert all(not parameter.any() for name, parameter in weights.items() if "lora_B" in name)
    without = policy()
    add_adapter(without, LoraSettings(rank=4, exclude_modules=r".*(value_head|lm_head).*"))
    assert not any("lm_head" in name for name, _ in without.named_parameters() if "lora_" in name)
