"""Statistics of the state for policies that normalise it, taken before the first update."""

import torch
from lightning import Callback, LightningModule, Trainer

from stare_lit import keys
from stare_lit.models.vla.state import NormalizedLinear


class StateStatistics(Callback):
    """Before training, lets a policy with ``normalize_state`` take mean and standard deviation of the data's states; one that has them keeps them.

    The data is one pass of the training data: the demonstrations, or in the interaction phase a first round by the untrained policy, which is
    used for nothing else and counts as environment steps. Every process must see the same data: one device.

    Raises:
        ValueError: several processes, or a policy without ``normalize_state``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        projector = pl_module.policy.state_projector
        if not isinstance(projector, NormalizedLinear):
            raise ValueError("StateStatistics: the policy does not normalise its state; give it normalize_state=True, or leave the callback out")
        if projector.calibrated:
            return
        if trainer.world_size > 1:
            raise ValueError(f"StateStatistics: takes one process, there are {trainer.world_size}; start from a policy that has its statistics")
        batches = iter(trainer.datamodule.train_dataloader())
        states = torch.cat([batch[keys.STATE][batch.get("mask", ...)].flatten(0, -2) for batch in batches])  # what fills up an episode is no state
        projector.calibrate(states.to(projector.mean))
