"""Says what memory a run will need before it starts, and refuses a run that cannot fit."""

import os
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from stare_lit.algorithms.lora import has_adapter
from stare_lit.models.vla.memory import MemoryPlan as Plan
from stare_lit.models.vla.memory import Workload, parameter_bytes, plan_memory


class MemoryPlan(Callback):
    """Prints weights, gradients, optimiser, activations and key/value cache of one device before training, in GiB.

    Args:
        batch_size: decisions in one forward and backward pass on one device; null: the module's ``micro_batch_size``, else its
            ``minibatch_size`` where it has them, else the data's ``batch_size`` or, where that counts pairs, its ``decisions_per_batch``.
        rollout_batch: decisions that the policy takes at once in rollouts; null: the data's ``num_envs``, else none.
        capacity: memory of the device in GiB; null: the device is asked.
    """

    def __init__(self, batch_size: int | None = None, rollout_batch: int | None = None, capacity: float | None = None) -> None:
        self.batch_size, self.rollout_batch, self.capacity = batch_size, rollout_batch, capacity

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the plan; of a trunk whose activations are not known (``load_image_text``) it says just that.

        Raises:
            ValueError: it does not fit, or the batch size cannot be told.
        """
        policy: Any = pl_module.policy
        if policy.config.backbone is not None:
            if trainer.is_global_zero:
                print(
                    f"memory on each device: not planned: the activations of this trunk ({policy.config.backbone.get('model_type')}) are not known", flush=True
                )
            return
        plan, capacity = self.plan(trainer, pl_module), self._capacity(trainer)
        if trainer.is_global_zero:
            print(f"memory on each device, of {capacity / 2**30:.1f} GiB:\n{plan}", flush=True)
        if plan.total > capacity:
            raise ValueError(
                f"memory: {plan.total / 2**30:.1f} GiB are needed on each device, which has {capacity / 2**30:.1f}; "
                "lower the (micro-)batch size, use an adapter (lora), checkpointing, 16-bit weights or more devices (fsdp)"
            )

    def plan(self, trainer: Trainer, pl_module: LightningModule) -> Plan:
        """The plan for what ``trainer`` is about to do."""
        policy: Any = pl_module.policy
        data = getattr(trainer, "datamodule", None)
        named = [getattr(pl_module, name) for name in ("micro_batch_size", "minibatch_size") if hasattr(pl_module, name)]
        of_data = getattr(data, "batch_size" if getattr(pl_module, "batches_of_decisions", not named) else "decisions_per_batch", None)
        found = next((size for size in named if size is not None), of_data)
        batch_size = self.batch_size if self.batch_size is not None else found
        if batch_size is None:
            raise ValueError(
                "batch_size=None: how many decisions go through the policy at once? give the callback a batch_size (or the module a micro_batch_size)"
            )
        workload = Workload(
            batch_size=batch_size,
            rollout_batch=self.rollout_batch if self.rollout_batch is not None else getattr(data, "num_envs", 0),
            precision=str(trainer.precision),  # type: ignore[arg-type]
            adapter=has_adapter(policy),
            checkpointing=getattr(pl_module, "checkpointing", False),
            shards=trainer.world_size if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)) else 1,
        )
        return plan_memory(policy.config, parameter_bytes(policy), workload)

    def _capacity(self, trainer: Trainer) -> float:
        if self.capacity is not None:
            return self.capacity * 2**30
        device = trainer.strategy.root_device
        if device.type == "cuda":
            return float(torch.cuda.get_device_properties(device).total_memory)
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
