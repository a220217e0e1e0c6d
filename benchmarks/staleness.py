"""Sampling and learning one after the other (``data.staleness`` 0) against side by side (1): wall time and success of the same rounds and seeds.

Run alone on the machine: python benchmarks/staleness.py --policy runs/toy/sft/best [--rounds 15] [--seeds 3]

For PushCube: --task PushCube-v1 --policy policies/push_cube_sft --num_envs 16 --decisions_per_env 52 --minibatch_size 208 --learning_rate 2e-5
--target_kl 0.2 --precision bf16-mixed --rounds 8
"""

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from rich.table import Table
from saving import save

from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.evaluation.report import console
from stare_lit.models.vla import VLAPolicy

RESULTS = Path(__file__).parent / "results"


class Keep(Callback):
    """Success in each round, and the seconds from the end of the first round to the end of the last."""

    def __init__(self) -> None:
        self.success: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.ends.append(time.perf_counter())
        self.success.append(float(trainer.callback_metrics["rollout/success"]))


def run(staleness: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training."""
    seed_everything(seed, verbose=False)
    module = StaPPOModule(
        VLAPolicy.from_pretrained(arguments.policy), learning_rate=arguments.learning_rate, value_learning_rate=1e-3, target_kl=arguments.target_kl,
        minibatch_size=arguments.minibatch_size,
    )  # fmt: skip
    data = RolloutDataModule(
        arguments.task, num_envs=arguments.num_envs, decisions_per_env=arguments.decisions_per_env, temperature=0.7, seed=seed, staleness=staleness
    )
    keep = Keep()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="auto", devices=1, max_epochs=arguments.rounds, precision=arguments.precision, callbacks=[keep], **quiet).fit(module, data)
    return {"seconds": keep.ends[-1] - keep.ends[0], "success": keep.success, "late": statistics.mean(keep.success[-arguments.rounds // 3 :])}


def main(line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="folder of the policy that both start from")
    parser.add_argument("--task", default="Toy-v0")
    parser.add_argument("--num_envs", type=int, default=64)
    parser.add_argument("--decisions_per_env", type=int, default=20)
    parser.add_argument("--minibatch_size", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--target_kl", type=float, default=0.15)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default=str(RESULTS / "staleness.json"))
    arguments = parser.parse_args(line)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for seed in range(arguments.seeds):
        for staleness in (0, 1) if seed % 2 == 0 else (1, 0):
            found[staleness].append(run(staleness, seed, arguments))
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(found[0], found[1], strict=True)]
    table = Table("staleness", "seconds (median)", "success in the last third (each seed)", title=f"{arguments.task}, {arguments.rounds} rounds")
    for staleness, runs in found.items():
        seconds = statistics.median(each["seconds"] for each in runs)
        table.add_row(str(staleness), f"{seconds:.1f}", ", ".join(f"{each['late']:.2f}" for each in runs))
    console().print(table)
    console().print(f"side by side is {statistics.median(ratios):.2f} times as fast [{min(ratios):.2f}-{max(ratios):.2f}]")
    save(arguments.output, arguments, {"runs": {str(staleness): runs for staleness, runs in found.items()}, "speed_ratios": ratios})


if __name__ == "__main__":
    main()
