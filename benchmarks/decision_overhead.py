"""What the policy and the collector add to a decision, beyond stepping the bare environments. Target: at most 2 ms a decision.

Run alone on the machine: python benchmarks/decision_overhead.py [--pairs 6] [--num_envs 16]

A pair is one round as the interaction phase samples it (RolloutDataModule in a Trainer: policy, transforms, collector) and the same round
again on the same environments without any of that: the same seeds, the same action chunks, the same resets, through the pool's own
``_step`` and ``_reset``. Both rounds are seen to have played the same episodes. Overhead = (first - second) / decisions; medians of pairs.
"""

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from rich.table import Table
from saving import save
from tensordict import TensorDict, TensorDictBase
from torch import nn

from stare_lit import keys
from stare_lit.data.rollouts import ROUND_SEED_STRIDE, RolloutDataModule
from stare_lit.evaluation.report import console
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny

RESULTS = Path(__file__).parent / "results"
TARGET = 2e-3
"""Seconds a decision."""


class Pairs(LightningModule):
    """Trains nothing: takes a round, steps the bare environments through it again, keeps both times."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.automatic_optimization = False
        self.pairs: list[dict[str, float]] = []

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        data = self.trainer.datamodule
        bare = replay(data._env.base_env, batch, seed=data.seed + ROUND_SEED_STRIDE * (data.round - 1))
        self.pairs.append({**data.seconds, "bare": bare, "decisions": float(batch.numel()), "steps": float(batch[keys.next_(keys.NUM_STEPS)].sum())})

    def configure_optimizers(self) -> None:
        return None


def replay(env: Any, batch: TensorDictBase, seed: int) -> float:
    """Seconds that ``env`` takes for the decisions of ``batch`` [N, T], with resets where they were."""
    chunks, done, seeds = batch[keys.ACTION_CHUNK], batch[keys.next_(keys.DONE)], batch[keys.EPISODE_SEED]
    started = time.perf_counter()
    env.set_seed(seed)
    observed = env._reset(None)
    for t in range(batch.shape[1]):
        assert torch.equal(observed[keys.EPISODE_SEED], seeds[:, t]), f"decision {t}: not the episodes of the first round"
        after = env._step(observed.update({keys.VLA_ACTION: {"chunk": chunks[:, t]}}))
        assert torch.equal(after[keys.DONE], done[:, t]), f"decision {t}: other episodes end than in the first round"
        observed = env._reset(TensorDict({"_reset": done[:, t]}, batch_size=env.batch_size)) if t + 1 < batch.shape[1] and done[:, t].any() else after
    return time.perf_counter() - started


def measure(policy: nn.Module, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians over the pairs, in seconds a decision; the first pair warms everything up and is left out."""
    data = RolloutDataModule(
        arguments.task, num_envs=arguments.num_envs, num_workers=arguments.num_workers, decisions_per_env=arguments.decisions_per_env,
        temperature=arguments.temperature,
    )  # fmt: skip
    module = Pairs(policy)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", max_epochs=arguments.pairs + 1, precision=arguments.precision, **quiet).fit(module, data)
    pairs = module.pairs[1:]
    parts = [{name: value / pair["decisions"] for name, value in pair.items()} for pair in pairs]
    overheads = sorted(part["simulate"] + part["policy"] - part["bare"] for part in parts)
    collector = statistics.median(part["simulate"] - part["bare"] for part in parts)
    medians = {name: statistics.median(part[name] for part in parts) for name in ("bare", "policy", "steps")}
    return {"overhead": statistics.median(overheads), "least": overheads[0], "most": overheads[-1], "collector": collector} | medians


def main(line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=None)
    parser.add_argument("--decisions_per_env", type=int, default=52)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--state_dim", type=int, default=16)
    parser.add_argument("--shipped", default="policies/push_cube_sft", help="folder of a policy; empty: the preset alone")
    parser.add_argument("--output", default=str(RESULTS / "decision_overhead.json"))
    arguments = parser.parse_args(line)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    torch.manual_seed(0)
    policies = {"preset tiny": tiny(arguments.state_dim, image_size=arguments.image_size, chunk_size=1)}
    if arguments.shipped:
        policies[arguments.shipped] = VLAPolicy.from_pretrained(arguments.shipped)
    rows = {f"{name}, chunk {policy.chunk_size}": measure(policy, arguments) for name, policy in policies.items()}
    columns = ("policy", "overhead ms [min-max]", "policy ms", "collector and transforms ms", "bare environments ms", f"<= {1000 * TARGET:.0f} ms")
    table = Table(*columns, title=f"{arguments.task}, {arguments.num_envs} environments, a decision")
    for name, row in rows.items():
        spread = f"{1000 * row['overhead']:.2f} [{1000 * row['least']:.2f}-{1000 * row['most']:.2f}]"
        rest = [f"{1000 * row[part]:.2f}" for part in ("policy", "collector", "bare")]
        table.add_row(name, spread, *rest, "yes" if row["overhead"] <= TARGET else "no")
    console().print(table)
    content = {"seconds_a_decision": rows, "target": TARGET, "torch_threads": torch.get_num_threads()}
    save(arguments.output, arguments, content)


if __name__ == "__main__":
    main()
