"""``stare fit | validate | test``: LightningCLI with a run folder, checked checkpoints and a summary at the end."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from stare_lit.algorithms.phase import PhaseModule
from stare_lit.callbacks.exact_resume import ExactResume
from stare_lit.callbacks.rollout_evaluation import RolloutEvaluation
from stare_lit.cli.checkpoint import CheckedCheckpointIO, check_checkpoint
from stare_lit.cli.run_folder import choose_run_dir, fill_run_dir, next_config_path

CHECKPOINT_WORDS = ("last", "best", "hpc")  # resolved by Lightning, inside the run folder
UPSTREAM_NOISE = (
    r"LightningCLI's args parameter is intended to run from within Python",  # which is what `stare ipi` does
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


class BriefParser(LightningArgumentParser):
    """Errors without the forty lines of usage before them; ``--help`` has it all."""

    def print_usage(self, file: Any = None) -> None:
        pass


class StareCLI(LightningCLI):
    """LightningCLI where ``class_path`` in YAML chooses model and data, and ``--run_dir`` says where everything is written."""

    run_dir: Path
    held: ClassVar[ExitStack] = ExitStack()  # the lock of the run folder, for as long as `run` runs

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit, validate and test; there is nothing to ``predict``."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run_dir``."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="folder of this run; default: the first free number under runs/<phase>/")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and fill it in where the user left a folder open; what gets saved is the configuration without it.

        With ``--ckpt_path last`` a run that was stopped before its first checkpoint begins anew (Lightning says so).
        """
        config = self.config[self.subcommand]
        phase = config.model.class_path.split(".")[-2]
        name = phase if self.subcommand == "fit" else f"{phase}-{self.subcommand}"
        self.asked = config.clone()
        self.asked.run_dir = None
        self.run_dir = choose_run_dir(config.run_dir, config.ckpt_path, name=name, held=self.held)
        fill_run_dir(config.trainer, self.run_dir)

    def after_instantiate_classes(self) -> None:
        """Check that model and data fit, and what evaluates them, and record the configuration: from here on the folder holds a run."""
        if isinstance(self.model, PhaseModule) and self.datamodule is not None:
            self.model.check_data(self.datamodule)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RolloutEvaluation) and (task := callback.task or getattr(self.datamodule, "task", None)):
                callback.check(task)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = CheckedCheckpointIO()
        if not getattr(self.trainer, "fast_dev_run", False):
            self._write_config()

    @rank_zero_only
    def _write_config(self) -> None:
        path = next_config_path(self.run_dir)
        temporary = path.with_name(f".{path.name}")
        self._parser(self.subcommand).save(self.asked, str(temporary), skip_none=False, multifile=False, overwrite=True)
        temporary.replace(path)

    def _parse_ckpt_path(self) -> None:
        """Check that ``--ckpt_path`` names a Lightning checkpoint. (Upstream also lets it override the model's settings; here the given ones hold.)"""
        path = self.config[self.config.subcommand].ckpt_path
        if path is None or path in CHECKPOINT_WORDS:
            return
        check_checkpoint(path)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; Ctrl-C, which Lightning turns into exit code 1 after its clean-up, is a KeyboardInterrupt again that says how to go on."""
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(self._resume_command() if subcommand == "fit" else "") from None
            raise

    def after_fit(self) -> None:
        """Say where the results lie and what to run next."""
        self._summary()

    def _resume_command(self) -> str:
        return f"stare fit --config {self.run_dir / 'config.yaml'} --run_dir {self.run_dir} --ckpt_path last"

    @rank_zero_only
    def _summary(self) -> None:
        checkpoint = self.trainer.checkpoint_callback
        best, last = getattr(checkpoint, "best_model_path", ""), getattr(checkpoint, "last_model_path", "")
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"\nrun folder       {self.run_dir}")
        for label, path in (("best checkpoint", best), ("last checkpoint", last)):
            if path:
                console.print(f"{label}  {_relative(path)}")
        if best or last:
            config = self.run_dir / "config.yaml"
            console.print(f"next             stare test --config {config} --ckpt_path {_relative(best or last)}")
            console.print(f"go on training   {self._resume_command()} --trainer.max_epochs ...")


def _relative(path: str) -> str:
    """``path`` as seen from here, where that is shorter."""
    resolved = Path(path).resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def run(args: Sequence[str]) -> Any:
    """Run ``stare`` with ``args`` (subcommand first, e.g. ``["fit", "--config", "configs/sft.yaml"]``) and return the finished CLI object.

    The object holds ``trainer``, ``model``, ``datamodule`` and ``run_dir``.
    """
    for message in UPSTREAM_NOISE:
        warnings.filterwarnings("ignore", message=message)
    with StareCLI.held:
        return StareCLI(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_defaults={"callbacks": ExactResume()},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=BriefParser,
            parser_kwargs={"prog": "stare"},
            args=None if list(args) == sys.argv[1:] else list(args),
        )
