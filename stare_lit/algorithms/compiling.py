"""Compilation of the parts of a policy that are run over and over, one at a time: a first call takes seconds, not the minutes of a whole graph."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from stare_lit.models.vla.towers import ConvStem


def compile_blocks(policy: nn.Module) -> None:
    """Let ``torch.compile`` have every transformer block and small convolutional tower of ``policy``, in place. Copies of the policy stay eager."""
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer | ConvStem):
            module.compile()
