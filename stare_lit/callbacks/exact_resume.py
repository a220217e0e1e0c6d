"""What Lightning leaves out of a checkpoint and an exact resume needs: random states of every process, and where the metrics stood."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.loggers import CSVLogger

CHECKPOINT_KEY = "exact_resume"


class ExactResume(Callback):
    """A run that goes on from a checkpoint repeats the undisturbed run to the bit, on the CPU and with the same settings and number of processes.

    Random states (torch, CUDA, numpy, Python; of every rank) are put back before the first batch. ``metrics.csv`` of the continued run begins
    with the rows that led to the checkpoint, so that the newest ``version_*`` holds the whole history, no row twice. Not restored: the state of
    a simulator (rounds begin with a seeded reset instead; on GPU physics that is not exact to the bit, nor are CUDA kernels that add in any order).
    """

    def __init__(self) -> None:
        self._random: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Training draws the same numbers whether its data had to be made before or was there."""
        reset_seed()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, _random_states())
        else:
            states = [_random_states()]
        checkpoint[CHECKPOINT_KEY] = {"random": states, "metrics": [_position(logger) for logger in _csv_loggers(trainer)]}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None or trainer.state.fn != "fit":
            return
        if len(saved["random"]) == trainer.world_size:
            self._random = saved["random"]
        if trainer.is_global_zero:
            loop = checkpoint["loops"]["fit_loop"]
            batches = loop["epoch_loop.batch_progress"]["total"]
            # a checkpoint of the end of a batch is written just before that batch's row is logged
            step_to_come = loop["epoch_loop.state_dict"]["_batches_that_stepped"] if batches["completed"] < batches["processed"] else None
            for logger, (file, num_rows) in zip(_csv_loggers(trainer), saved["metrics"], strict=False):
                _carry_over(logger, Path(file), num_rows, step_to_come)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # the next hook would be after the first batch was made
        if self._random is not None:
            _set_random_states(self._random[trainer.global_rank])
            self._random = None


def _random_states() -> dict[str, Any]:
    """Tensors and plain values, for a checkpoint is read with ``weights_only``."""
    name, words, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": [name, words.tolist(), *rest], "python": random.getstate()}


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, words, *rest = states["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


# -- metrics -------------------------------------------------------------------------------------------------------------
def _csv_loggers(trainer: Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _position(logger: CSVLogger) -> tuple[str, int]:
    """The metrics file and how many rows it has, all of them on disk."""
    if logger._experiment is not None:
        logger.save()
    file = Path(logger.log_dir) / "metrics.csv"
    return str(file), len(_rows(file))


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _carry_over(logger: CSVLogger, file: Path, num_rows: int, step_to_come: int | None) -> None:
    """Writes into ``logger`` what the run had logged by the time of the checkpoint: the numbers as they stand there."""
    rows = _rows(file)
    for row in rows[:num_rows] + [row for row in rows[num_rows : num_rows + 1] if row["step"] == str(step_to_come)]:
        logger.experiment.log_metrics({name: value for name, value in row.items() if value and name != "step"}, int(row["step"]))
    logger.save()
