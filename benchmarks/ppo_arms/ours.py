"""What `ppo_baseline.py` hangs on a `stare fit`: a record of success on the validation seeds over environment steps and wall time; the policy at the end."""

import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from record import Curve, Limits
from torchrl.envs import EnvBase

from stare_lit.envs.factory import make_env
from stare_lit.evaluation.evaluate import evaluate_policy


class Record(Callback):
    """Evaluates before the first round and about every ``limits.every`` environment steps; ends the run where the cell is over.

    Args:
        record: file of the curve.
        started: ``time.monotonic()`` of the parent process.
        limits: when the cell ends.
        num_envs, num_workers: environments and processes of an evaluation.
        charged_steps, charged_seconds: what demonstrations and SFT took, counted from the start.
    """

    def __init__(
        self, record: str, started: float, limits: Limits, num_envs: int = 16, num_workers: int = 2, charged_steps: int = 0, charged_seconds: float = 0.0
    ) -> None:
        self.curve = Curve(Path(record), started - charged_seconds, limits)
        self.num_envs, self.num_workers, self.charged_steps = num_envs, num_workers, charged_steps
        self._env: EnvBase | None = None
        self._last = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limits = self.curve.limits
        steps = trainer.datamodule.env_steps
        if steps - self._last >= limits.every or self.charged_steps + steps >= limits.max_steps or self.curve.seconds() >= limits.max_seconds:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        began, data, limits = time.monotonic(), trainer.datamodule, self.curve.limits
        self._last = data.env_steps
        seeds = range(limits.first_seed, limits.first_seed + limits.num_episodes)
        with isolate_rng():
            if self._env is None:
                settings = module.policy.environment | {"terminate_on_success": False}
                self._env = make_env(data.task, self.num_envs, num_workers=self.num_workers, **settings)
            found = evaluate_policy(module.policy, self._env, seeds, task=data.task)
        if self.curve.evaluated(self.charged_steps + data.env_steps, found.success_once.tolist(), began):
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class Save(Callback):
    """Writes the policy into folder ``path`` once training is over, without an evaluation."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.policy.save_pretrained(self.path)
