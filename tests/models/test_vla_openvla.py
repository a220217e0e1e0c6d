"""The class takes OpenVLA's layout by configuration."""

import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import openvla_7b_config, openvla_tiny_config


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_openvla_7b_has_the_published_sizes():
    with torch.device("meta"):
        policy = VLAPolicy(openvla_7b_config())
    assert policy.vision.num_patches == 256 and policy.vision.width == 1024 + 1152
    assert count(policy.language_model) == 6_738_415_616 + 2 * 64 * 4096  # Llama-2-7B and 64 padding rows in embedding and head
    assert count(policy.projector) == (2176 + 1) * 8704 + (8704 + 1) * 4096 + (4096 + 1) * 4096
    assert [len(tower.layers) for tower in policy.vision.towers] == [23, 26]  # the last block influences nothing
    assert [tuple(layer.weight.shape) for layer in policy.value_head.mlp[::2]] == [(512, 4096), (128, 512), (1, 128)]
    assert policy.window_offset == 32000 - 256


def test_openvla_tiny_runs():
    torch.manual_seed(0)
    policy = VLAPolicy(openvla_tiny_config())
    td = TensorDict({keys.IMAGE: torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8), keys.INSTRUCTION: "put carrot on plate"}, [2])
    policy.act(td, temperature=0.0, value=True)
    assert td[keys.ACTION_CHUNK].shape == (2, 1, 7) and td[keys.STATE_VALUE].shape == (2, 1)
    assert policy.logits(td, full_vocabulary=True).shape == (2, 1, 7, 512) and policy.window_offset == 192
    torch.testing.assert_close(policy.evaluate_actions(td)["log_probs"], td[keys.LOG_PROBS], atol=1e-5, rtol=0.0)
    out = policy.evaluate_actions(td, value=True)
    (out["log_probs"].sum() + policy.logits(td, full_vocabulary=True)[..., 0].sum()).backward()
    assert [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None and not n.startswith("value_head")] == []


def test_vision_towers_take_the_golden_shapes():
    policy = VLAPolicy(openvla_tiny_config())
    dino, siglip = policy.vision.towers
    assert policy.vision(torch.zeros(2, 3, 56, 56, dtype=torch.uint8)).shape == (2, 16, 80)
    assert dino.embeddings.position_embeddings.shape == (1, 17, 32) and dino.embeddings.register_tokens.shape == (1, 4, 32)
    assert siglip.layers[0].mlp.fc1.weight.shape == (179, 48)
