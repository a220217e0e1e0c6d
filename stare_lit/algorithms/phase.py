"""What the LightningModules of the three phases share: adapters, hooks without data, and losses over all processes."""

from typing import Any

import torch
from lightning import LightningModule
from tensordict import TensorDictBase
from torch import Tensor, nn

from stare_lit.algorithms.checkpointing import checkpoint_blocks
from stare_lit.algorithms.lora import LoraSettings, add_adapter, has_adapter, merge_adapter, merged_copy
from stare_lit.algorithms.sharding import gathered, shard
from stare_lit.types import LossOutput


class PhaseModule(LightningModule):
    """One phase of training of an injected policy.

    Args:
        policy: a ``types.Policy``; an adapter that it brings along is merged.
        lora: train a fresh adapter instead of all weights.
        train_value_head: False freezes it, for a phase whose loss says nothing about values (DDP waits for a gradient of all that is not frozen).
        checkpointing: run transformer blocks again in the backward pass instead of keeping what they compute.
    """

    policy: Any  # nn.Module and types.Policy
    batches_of_decisions = False
    """Whether the data's ``batch_size`` counts decisions, not rounds or pairs of trajectories."""

    def __init__(self, policy: nn.Module, lora: LoraSettings | None, *, train_value_head: bool, checkpointing: bool = False) -> None:
        super().__init__()
        self.policy, self.lora, self.train_value_head, self.checkpointing = policy, lora, train_value_head, checkpointing
        if checkpointing:
            checkpoint_blocks(policy)
        self._skeleton: tuple[nn.Module, ...] = ()  # a tuple hides it from state_dict
        merge_adapter(policy)  # before a reference is computed
        policy.value_head.requires_grad_(train_value_head)

    def configure_model(self) -> None:
        """Adds the adapter, beside which the value head is trained as it is, and shards where the strategy asks for it; by now there is the reference."""
        if self.lora is not None and not has_adapter(self.policy):
            add_adapter(self.policy, self.lora)
            self.policy.value_head.requires_grad_(self.train_value_head)
        if self.device_mesh is not None:  # ModelParallelStrategy
            self._skeleton = (shard(self.policy, self.device_mesh["data_parallel"]),)

    def check_data(self, data: Any) -> None:
        """Raises ValueError where the data module does not fit; the command line asks before any data are made."""

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor | None:
        return self._step(batch, "train")

    def validation_step(self, batch: TensorDictBase | None, batch_idx: int) -> None:
        if batch is not None:  # `stare validate`: success alone, by the RolloutEvaluation callback
            self._step(batch, "val")

    def test_step(self, batch: None, batch_idx: int) -> None:
        """Success is measured by the ``RolloutEvaluation`` callback."""

    def whole_policy(self) -> nn.Module | None:
        """The policy, for one process to act with. Where it is sharded all processes must ask; the first gets a gathered copy, the others None."""
        if not self._skeleton:
            return self.policy
        whole = gathered(self.policy, *self._skeleton)
        return whole if whole is None else whole.to(self.device)

    def merged_policy(self) -> nn.Module | None:
        """The policy to save: ``whole_policy`` without adapters."""
        whole = self.whole_policy()
        return whole if whole is None else merged_copy(whole)

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all processes, without gradient."""
        return self.trainer.strategy.reduce(value.detach().clone(), reduce_op="sum")

    def joint_loss(self, output: LossOutput) -> Tensor:
        """What each process has to differentiate so that the gradients' mean over processes, which DDP and FSDP take, is that of the joint batch:
        ``num_processes * sum of this process's losses / sum of all weights``. With one process it is ``output.mean``.
        """  # fmt: skip
        weight = self.total(output.weight).clamp_min(torch.finfo(output.weight.dtype).tiny)
        return self.trainer.world_size * output.loss / weight

    def _step(self, batch: TensorDictBase, phase: str) -> Tensor:
        raise NotImplementedError
