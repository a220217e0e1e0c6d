"""What the ablation matrix hangs on a `stare fit`: the learning curve, and the cap in environment steps."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from stare_lit.callbacks.rollout_evaluation import RolloutEvaluation
from stare_lit.evaluation.report import write_json

FILE = "curve.json"


class Curve(RolloutEvaluation):
    """``RolloutEvaluation`` whose every result is a point of ``curve.json`` in the run folder; goes on over a resume.

    The seconds of a point are those since training began, without evaluations: imports, demonstrations and simulator starts are not in them.

    Args:
        every_env_steps: evaluate after so many environment steps of training; None: not by these.
        max_env_steps: end training at the first round that reaches so many; None: no such cap.
        settings: of ``RolloutEvaluation``.
    """

    def __init__(self, *, every_env_steps: int | None = None, max_env_steps: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.every_env_steps, self.max_env_steps = every_env_steps, max_env_steps
        self.points: list[dict[str, Any]] = []
        self.learnt = 0
        """Environment steps of the rounds that were learnt from; the data may have sampled the next one already."""
        self._before, self._began, self._evaluated = 0.0, time.monotonic(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training, without evaluations, over all attempts."""
        return self._before + time.monotonic() - self._began - (self.seconds - self._evaluated)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._evaluated = time.monotonic(), self.seconds
        super().on_train_start(trainer, pl_module)
        self._stop_at_cap(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.learnt = getattr(trainer.datamodule, "env_steps", 0)
        super().on_train_epoch_end(trainer, pl_module)
        last = self.points[-1]["env_steps"] if self.points else 0
        if self.every_env_steps and self.learnt // self.every_env_steps > last // self.every_env_steps:
            self._evaluate(trainer, pl_module)
        self._stop_at_cap(trainer)

    def _stop_at_cap(self, trainer: Trainer) -> None:
        if self.max_env_steps and self.learnt >= self.max_env_steps:
            trainer.should_stop = True

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        point = {"step": trainer.global_step, "env_steps": self.learnt, "seconds": self.elapsed}
        super()._evaluate(trainer, module)
        result = self.results["last"]
        reached = {name: rate.value for name, rate in result.reached.items()}
        self.points.append(point | {"success": result.success.value, "episodes": len(result.seeds), "reached": reached})
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / FILE, {"points": self.points})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"points": list(self.points), "learnt": self.learnt, "elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.points, self.learnt, self._before = list(state_dict["points"]), state_dict["learnt"], state_dict["elapsed"]
