"""Low-rank adapters (peft) on a policy: merged on entering a phase, then a fresh zero one, so that "adapter off" is the policy that entered."""

import copy
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@dataclass(frozen=True)
class LoraSettings:
    """Size and place of the adapters; defaults are RL4VLA's (arXiv 2505.19789).

    RL4VLA (``SimplerEnv/simpler_env/policies/openvla/openvla_train.py``) names every matrix of towers, projector and language model, ``lm_head``
    among them. So does OpenVLA's ``vla-scripts/finetune.py`` in effect: peft 0.11.1, which it asks for, means to leave the output head out of
    "all-linear", but compares its full name with last parts of names, and ``lm_head`` stays in. Both catch the patch convolution too (``proj``);
    "all-linear" here is matrices alone. Both draw the first factor from a Gaussian.

    Args:
        rank: of each adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: on the adapter's input; 0 keeps the first step's log-ratio at exactly 0.
        target_modules: "all-linear", or a regular expression over module names.
        exclude_modules: a regular expression over module names that get none; ``.*lm_head`` leaves the output head as it is. One that shares its weight
            with the input embedding never gets any: merged, it would change what is read, too.
        initialisation: of the first factor: ``gaussian`` (deviation 1 / rank) or ``kaiming`` (peft's own default); the second is zero.
    """

    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str = "all-linear"
    exclude_modules: str = r"(.*\.)?value_head(\..*)?"
    initialisation: Literal["gaussian", "kaiming"] = "gaussian"


def add_adapter(policy: nn.Module, settings: LoraSettings) -> None:
    """Add a fresh adapter, in place, in float32; it changes no output until it is trained. Everything else is frozen.

    Raises:
        ValueError: there is an adapter already.
    """
    if has_adapter(policy):
        raise ValueError("policy: has an adapter already; merge it first (merge_adapter), so that 'adapter off' is the policy that enters the phase")
    uses = Counter(id(parameter) for module in policy.modules() for parameter in module.parameters(recurse=False))
    tied = [re.escape(name) for name, module in policy.named_modules() if isinstance(module, nn.Linear) and uses[id(module.weight)] > 1]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        exclude_modules="|".join([settings.exclude_modules, *tied]),
        init_lora_weights="gaussian" if settings.initialisation == "gaussian" else True,
    )
    inject_adapter_in_model(config, policy)
    for parameter in policy.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # a step of 1e-4 is lost in bfloat16's 8 bits


def merge_adapter(policy: nn.Module) -> None:
    """Add every adapter to the weights it stands beside and take it away, in place; every parameter is trainable again. Does nothing without one."""
    adapted = [(name, layer) for name, layer in policy.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(policy.get_submodule(parent), child, layer.get_base_layer())
    if adapted:
        vars(policy).pop("peft_config", None)  # peft's note of what is there; it warns of a second adapter otherwise
        policy.requires_grad_(True)


def merged_copy(policy: nn.Module) -> nn.Module:
    """The policy without adapters, for saving: itself where it has none, else a merged copy."""
    if not has_adapter(policy):
        return policy
    policy = copy.deepcopy(policy)
    merge_adapter(policy)
    return policy


@contextmanager
def adapter_off(policy: nn.Module) -> Iterator[None]:
    """The policy that entered the phase, for as long as the context lasts."""
    layers = [layer for layer in policy.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def has_adapter(policy: nn.Module) -> bool:
    """Whether any layer has an adapter."""
    return any(isinstance(layer, BaseTunerLayer) for layer in policy.modules())
