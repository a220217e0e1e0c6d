"""Fully sharded weights (torch's FSDP2), for a policy that one device cannot hold with its gradients and optimizer state."""

import copy

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

ENTRANCES = ("act", "evaluate_actions", "value_only", "logits")
"""Methods of a ``types.Policy`` that compute: each gathers the weights it needs, block by block, as a forward pass does."""


def shard(policy: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard the parameters of ``policy`` over the processes of ``mesh`` [n], in place, each repeated block by itself.

    Every call of an `ENTRANCES` method is then a collective operation: all processes make it, with batches of their own.

    Returns:
        The policy as it was, its parameters without memory (on ``meta``): what ``gathered`` fills.
    """
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in policy.parameters()}
    skeleton = copy.deepcopy(policy, memo=empty)
    for blocks in [module for module in policy.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            if type(block).forward is not nn.Module.forward:
                fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    for name in ENTRANCES:
        register_fsdp_forward_method(policy, name)
    return skeleton


def gathered(policy: nn.Module, skeleton: nn.Module) -> nn.Module | None:
    """A copy of a sharded ``policy`` with all its weights, in the CPU's memory, on the first process; None on the others. A collective operation."""
    weights = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() != 0:
        return None
    whole = copy.deepcopy(skeleton)
    whole.load_state_dict(weights, assign=True)
    return whole
