"""Stops training at the first NaN or infinity, before it can reach the weights."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from stare_lit import keys


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not a finite number."""


class NonFiniteGuard(Callback):
    """Checks the loss before each backward pass and the gradients before each optimizer step, manual optimisation included.

    It raises before the step is taken, so the weights in memory, and every checkpoint on disk, are still the last good ones.

    Args:
        check_gradients: also look at the gradients (one reduction a step).
    """

    def __init__(self, check_gradients: bool = True) -> None:
        self.check_gradients = check_gradients
        self._batch: Any = None
        self._batch_index = -1
        self._backwards = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_index, self._backwards = batch, batch_idx, 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._backwards += 1
        if not bool(loss.detach().isfinite().all()):
            raise NonFiniteError(f"the loss is {float(loss.detach().sum())} {self._where(trainer)}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.check_gradients or getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        named = [(name, parameter.grad) for name, parameter in pl_module.named_parameters() if parameter.grad is not None]
        if named and not bool(torch.stack([norm.isfinite() for norm in torch._foreach_norm([grad for _, grad in named])]).all()):
            bad = [name for name, grad in named if not bool(grad.isfinite().all())]
            raise NonFiniteError(f"{len(bad)} gradients are not finite (the first: {bad[0] if bad else 'norm overflow'}) {self._where(trainer)}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batch = None  # do not hold its memory until the next one

    def _where(self, trainer: Trainer) -> str:
        seeds = self._batch.get(keys.EPISODE_SEED, None) if isinstance(self._batch, TensorDictBase) else None
        known = "" if seeds is None else f", seeds {seeds.unique()[:8].tolist()}"
        return (
            f"in epoch {trainer.current_epoch}, batch {self._batch_index} (backward pass {self._backwards}, optimizer step {trainer.global_step}{known}); "
            "the weights before it are kept. Lower the learning rate or gradient_clip_val, or look at that batch; go on from a checkpoint with --ckpt_path"
        )
