"""How a batch of training data spreads over the stages."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from tensordict import TensorDictBase

from stare_lit import keys
from stare_lit.callbacks.rollout_evaluation import data_task
from stare_lit.stages.tasks import get_spec


class StageMetrics(Callback):
    """Logs, for each stage, the share of decisions worked on it (``rollout/stage_share/<stage>``) and their mean error (``rollout/stage_error/<stage>``).

    Batches without ``stage_index`` (plain imitation) log nothing; padding (index -1) does not count.

    Args:
        task: environment id, for the stages' names; None: the data's own.
        every_n_batches: how often.
    """

    def __init__(self, task: str | None = None, every_n_batches: int = 1) -> None:
        if every_n_batches < 1:
            raise ValueError(f"every_n_batches={every_n_batches}: at least 1")
        self.task, self.every_n_batches = task, every_n_batches
        self.names: tuple[str, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.names = (*get_spec(self.task or data_task(trainer)).names, "done")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.every_n_batches or not isinstance(batch, TensorDictBase) or keys.STAGE_INDEX not in batch.keys():
            return
        metrics = stage_shares(batch, self.names)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def stage_shares(batch: TensorDictBase, names: tuple[str, ...]) -> dict[str, float]:
    """Share of decisions and mean error by stage; ``names`` has one entry more than the task has stages, for those that are done."""
    index = batch[keys.STAGE_INDEX].flatten()
    error = batch.get(keys.STAGE_ERROR, None)
    counts = torch.stack([(index == k).sum() for k in range(len(names))]).double()
    metrics = {f"rollout/stage_share/{name}": float(count / counts.sum().clamp_min(1)) for name, count in zip(names, counts, strict=True)}
    if error is not None:
        for k, name in enumerate(names[:-1]):
            if counts[k]:
                metrics[f"rollout/stage_error/{name}"] = float(error.flatten()[index == k].mean())
    return metrics
