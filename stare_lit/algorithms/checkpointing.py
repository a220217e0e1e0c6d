"""Activation checkpointing: transformer blocks, or whole micro-batches, keep their input alone and are run again in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_blocks(policy: nn.Module) -> None:
    """Let every block of the language model and of its transformer towers be run again, in place; gradients stay the same. A second call changes nothing.

    transformers' own switch is not used: in training mode it drops the key/value cache, without gradients too, and towers here are bare blocks.
    """
    for block in policy.modules():
        if isinstance(block, GradientCheckpointingLayer) and "forward" not in vars(block):
            block.forward = partial(_run, block.forward)  # type: ignore[method-assign]  # a partial, so that a deep copy runs its own block


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)


def in_micro_batches(evaluate: Callable[[TensorDictBase], Tensor], batch: TensorDictBase, size: int | None) -> Tensor:
    """``evaluate(batch)`` [len(batch), ...], with the activations of at most ``size`` rows in memory at once: beyond it they are computed again in the
    backward pass, with identical gradients, at one more forward. None never splits.
    """  # fmt: skip
    if size is None or len(batch) <= size:
        return evaluate(batch)
    return torch.cat([_run(evaluate, part) for part in batch.split(size)])
