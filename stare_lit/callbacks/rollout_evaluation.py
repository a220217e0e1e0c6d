"""Success in the simulator while training: before, every so often, after; keeps the best and the last policy."""

import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torchrl.envs import EnvBase

from stare_lit.callbacks.provenance import all_finite, describe, save_policy
from stare_lit.callbacks.video import FrameRecorder, real_time_fps, write_video
from stare_lit.envs.factory import check_env, envs_for, make_env
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.evaluate import Evaluation, evaluate_policy, full_horizon, measure_of
from stare_lit.evaluation.report import console, report, summary_table, write_json


class RolloutEvaluation(Callback):
    """Evaluates ``module.policy`` to the full horizon on fixed seeds, always the same ones, so that before and after are paired.

    Logs ``val/success`` (what the task's benchmark counts, see ``measure_of``), ``val/success_once``, ``val/success_at_end``,
    ``rollout/stage_reached/<stage>`` and more; all are there for ModelCheckpoint to monitor from the first step on. Writes ``best/`` (highest success,
    then success_at_end, then success_once on these seeds; the policy that entered counts) and ``last/``, both with ``provenance.json``, and
    ``evaluation.json`` and ``videos/``. ``validate`` and ``test`` runs evaluate once, on their own split.

    Args:
        task: environment id; None: the data's own.
        every_n_epochs: evaluate after so many epochs (rounds of interaction); None: not by epochs.
        every_n_steps: evaluate after so many optimizer steps; None: not by steps.
        num_episodes: one from each of the first seeds of ``split``.
        split: seeds to choose the best policy on; the other splits are for ``stare eval``, once.
        test_episodes: how many test seeds a ``test`` run takes.
        temperature: 0 is greedy.
        num_envs: environments side by side.
        num_workers: processes for them; None: one a core.
        image_size: side of the camera image in pixels; None: what the policy's configuration says.
        environment: further settings of ``make_env``, such as ``max_episode_steps`` or ``visuals``.
        at_start: also evaluate the policy that enters.
        stop_at: end training once success has reached this share; None: never.
        video_episodes: how many episodes are filmed; 0: no video.
        dirpath: where to write; None: the trainer's ``default_root_dir``, the run folder.
    """

    def __init__(
        self,
        task: str | None = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        num_episodes: int = 50,
        split: Literal["validation", "train"] = "validation",
        test_episodes: int = 200,
        temperature: float = 0.0,
        num_envs: int = 8,
        num_workers: int | None = None,
        image_size: int | None = None,
        environment: dict[str, Any] | None = None,
        at_start: bool = True,
        stop_at: float | None = None,
        video_episodes: int = 4,
        dirpath: str | None = None,
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "test_episodes": test_episodes}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1{'' if name == 'test_episodes' else ', or null to switch it off'}")
        if stop_at is not None and not 0 < stop_at <= 1:
            raise ValueError(f"stop_at={stop_at}: a share in (0, 1], or null")
        if split not in ("validation", "train"):
            raise ValueError(
                f"split={split!r}: the best policy is chosen on these seeds; choose 'validation', and run `stare eval --split {split}` once, at the end"
            )
        self.seeds = {
            "fit": split_seeds(split, num_episodes),
            "validate": split_seeds("validation", num_episodes),
            "test": split_seeds("test", test_episodes),
        }
        self.task, self.split, self.temperature = task, split, temperature
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.num_envs, self.num_workers, self.image_size, self.environment = num_envs, num_workers, image_size, environment or {}
        self.at_start, self.stop_at, self.video_episodes, self.dirpath = at_start, stop_at, video_episodes, dirpath
        self.results: dict[str, Evaluation] = {}  # "before", "best", "last"
        self.steps: dict[str, int] = {}
        self.seconds = 0.0
        self._env: EnvBase | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.task = self.task or data_task(trainer)
        self.check(self.task)

    def check(self, task: str) -> None:
        """Raises ValueError where no evaluation can be made; ``stare fit`` asks before it makes demonstrations, which takes long."""
        check_env(task, envs_for(len(self.seeds["fit"]), self.num_envs, self.num_workers), num_workers=self.num_workers, **full_horizon({}, self.environment))

    # -- when ------------------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "last" in self.results:  # a continued run
            trainer.callback_metrics.update(_as_tensors(self._metrics(self.results["last"])))
            self._stop_if_reached(trainer)
        elif self.at_start:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.every_n_steps and trainer.global_step // self.every_n_steps > self.steps.get("last", 0) // self.every_n_steps:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and self.steps.get("last") != trainer.global_step:
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # not on_train_end: a run killed after its last step skips that
        if self.steps.get("last") != trainer.global_step:
            self._evaluate(trainer, pl_module)
        self._report(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._evaluate_once(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate_once(trainer, pl_module, "test")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """What was learned until then goes to ``last/``, unless the weights are damaged."""
        whole = trainer.is_global_zero and pl_module.device_mesh is None  # a sharded one would wait for the other processes
        if trainer.state.fn == "fit" and trainer.global_step > 0 and whole and all_finite(pl_module.policy):
            save_policy(pl_module.policy, self._folder(trainer) / "last", describe(trainer, pl_module), {})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    # -- what ------------------------------------------------------------------------------------------------------------
    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Rank 0 evaluates, the others wait and are told the numbers."""
        policy = _whole_policy(module)
        measured = self._measure(trainer, policy, "fit") if trainer.is_global_zero else None
        result: Any = trainer.strategy.broadcast(measured)
        first = "last" not in self.results
        if first and trainer.global_step == 0:
            self.results["before"], self.steps["before"] = result, 0
        self.results["last"], self.steps["last"] = result, trainer.global_step
        best = "best" not in self.results or _rank(result) > _rank(self.results["best"])
        if best:
            self.results["best"], self.steps["best"] = result, trainer.global_step
        if trainer.is_global_zero:
            record = describe(trainer, module) | {"task": self.task}
            for name in ["best", "last"] if best else ["last"]:
                save_policy(policy, self._folder(trainer) / name, record, self._metrics(self.results[name]))
        metrics = self._metrics(result) | {"val/evaluation_seconds": self.seconds}
        trainer.callback_metrics.update(_as_tensors(metrics))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        _say(trainer, f"step {trainer.global_step}: success_once {result.once}, at end {result.at_end}{' (best)' if best else ''}")
        self._stop_if_reached(trainer)

    def _stop_if_reached(self, trainer: Trainer) -> None:
        if self.stop_at is not None and self.results["last"].success.value >= self.stop_at:
            trainer.should_stop = True
            _say(trainer, f"{measure_of(self.task)} has reached stop_at={self.stop_at}: training ends here")

    def _evaluate_once(self, trainer: Trainer, module: LightningModule, kind: str) -> None:
        policy = _whole_policy(module)
        if trainer.is_global_zero:
            result = self._measure(trainer, policy, kind)
            for logger in trainer.loggers:
                logger.log_metrics({f"{kind}/{name}": value for name, value in result.metrics().items()}, step=trainer.global_step)
            write_json(self._folder(trainer) / f"{kind}.json", report({kind: result}, config=self._settings(result)))
            console().print(summary_table({kind: result}, title=f"{self.task}, {len(result.seeds)} {kind} seeds, temperature {self.temperature:g}"))

    def _measure(self, trainer: Trainer, policy: Any, kind: str) -> Evaluation:
        start, seeds = time.monotonic(), self.seeds[kind]
        if self._env is None:
            settings = full_horizon(policy.environment | ({} if self.image_size is None else {"image_size": self.image_size}), self.environment)
            with isolate_rng():  # training goes on as if nothing had been measured
                self._env = make_env(self.task, envs_for(len(seeds), self.num_envs, self.num_workers), num_workers=self.num_workers, **settings)
        recorder = FrameRecorder(seeds[: self.video_episodes])
        with isolate_rng(), trainer.precision_plugin.forward_context():
            result = evaluate_policy(policy, self._env, seeds, task=self.task, temperature=self.temperature, watch=recorder)
        if (film := recorder.film()) is not None:
            name = f"step_{trainer.global_step:07d}.mp4" if kind == "fit" else f"{kind}.mp4"
            path = write_video(self._folder(trainer) / "videos" / name, film, fps=real_time_fps(self.task, policy.chunk_size))
            for logger in trainer.loggers:
                if hasattr(logger, "log_video"):
                    logger.log_video(key="rollout/video", videos=[str(path)], format=["mp4"])
        self.seconds += time.monotonic() - start
        return result

    def _metrics(self, result: Evaluation) -> dict[str, float]:
        return {f"{'rollout' if '/' in name else 'val'}/{name}": value for name, value in result.metrics().items()}

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.dirpath or trainer.default_root_dir)

    def _settings(self, result: Evaluation) -> dict[str, Any]:
        return {"task": self.task, "split": self.split, "num_episodes": len(result.seeds), "temperature": self.temperature, **self.environment}

    @rank_zero_only
    def _report(self, trainer: Trainer) -> None:
        """Before and after with intervals, where the policy lies and what to run next."""
        folder = self._folder(trainer)
        gains = {name: self.results[name].gain_over(self.results["before"]) for name in ("best", "last") if "before" in self.results}
        rows = {f"{name} (step {self.steps[name]})": result for name, result in self.results.items()}
        named_gains = {f"{name} (step {self.steps[name]})": gain for name, gain in gains.items()}
        write_json(folder / "evaluation.json", report(rows, named_gains, config=self._settings(self.results["last"])))
        out = console()
        title = f"{self.task}, {len(self.seeds['fit'])} {self.split} seeds, temperature {self.temperature:g} ({self.seconds:.0f} s of evaluation)"
        out.print(summary_table(rows, named_gains, title=title))
        out.print("'best' was chosen on these seeds, so its number here flatters it; the test seeds do not:")
        out.print(f"policy           {folder / 'best'}")
        out.print(f"next             stare eval --checkpoint {folder / 'best'} --task {self.task} --split test --num_episodes 200")

    # -- resume ----------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        return {"results": {name: result.to_dict() for name, result in self.results.items()}, "steps": dict(self.steps), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results = {name: Evaluation.from_dict(values) for name, values in state_dict["results"].items()}
        self.steps, self.seconds = dict(state_dict["steps"]), state_dict["seconds"]


def data_task(trainer: Trainer) -> str:
    """The task of the trainer's data. Raises ValueError where it names none."""
    task = getattr(getattr(trainer, "datamodule", None), "task", None)
    if task is None:
        raise ValueError("task=None: the data names no task; give the callback one (init_args.task).")
    return task


def _whole_policy(module: Any) -> Any:
    """The policy to act with; None on other processes than the first where it is sharded."""
    return module.whole_policy() if hasattr(module, "whole_policy") else module.policy


def _rank(result: Evaluation) -> tuple[float, float, float]:
    return result.success.value, result.at_end.value, result.once.value


def _as_tensors(metrics: dict[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in metrics.items()}


def _say(trainer: Trainer, text: str) -> None:
    """One line that does not tear an active progress bar."""
    if trainer.is_global_zero:
        bar = trainer.progress_bar_callback
        (bar.print if bar is not None else print)(text)
