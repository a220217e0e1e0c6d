"""Speed and memory of an OpenVLA-7B policy on one GPU: an update of StA-PPO, a step of StA-TPO, decisions in rollouts. Random weights of the true shape.

Run alone on the machine: python benchmarks/openvla_7b.py [--micro_batch_size 16] [--checkpointing]
On the CPU, the same path in seconds: python benchmarks/openvla_7b.py --shape tiny --device cpu --output /tmp/tiny.json

The first command has not been run yet, for want of a GPU: benchmarks/results/ holds its numbers once it has.

Measured: the card's own rate first (square bfloat16 matrix products, the best of some sizes); then the phases as ``stare fit`` runs them (Lightning,
bf16-mixed, weights bfloat16, LoRA of rank 32 in float32), on made-up batches of RL4VLA's minibatch, 160 decisions (arXiv 2505.19789): forward, backward,
clipping, AdamW. Medians after warm-up; a GPU is synchronised before and after. Micro-batches are the largest that the memory plan lets onto the card.

Model FLOPs (stare_lit/models/vla/flops.py has the details): forward 2 n numel of every matrix that is applied at n positions, and 4 n^2 d of every
attention block of width d (2 n^2 d where it is causal); in training a second time for the gradients of inputs, and a third time for those of the weights
that are trained, which are the adapters alone: about 4 a frozen weight and position, not 6. Attention counts three times.
Element-wise work is left out, and so is what is computed a second time (``--checkpointing``; StA-TPO beyond one micro-batch, whose forward runs twice) or
besides (the values of the two states that end the round): the share is of *useful* work. "tokens" are positions of the language model.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from rich.table import Table
from tensordict import TensorDict
from torch import nn
from torch.utils.data import DataLoader

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, add_adapter
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.algorithms.sta_tpo import StaTPOModule
from stare_lit.evaluation.report import console, hardware, package_versions, write_json
from stare_lit.models.vla import VLAConfig, VLAPolicy
from stare_lit.models.vla.flops import decision_flops
from stare_lit.models.vla.io import empty_parameters
from stare_lit.models.vla.memory import Workload, parameter_bytes, plan_memory
from stare_lit.models.vla.presets import openvla_7b_config, openvla_tiny_config

RESULTS = Path(__file__).parent / "results"
INSTRUCTION = "push the blue cube to the red and white target"


@dataclass(frozen=True)
class Shape:
    """What is measured: a policy, decisions in an update, batch sizes of rollouts, sides of the matrix products."""

    config: Callable[[], VLAConfig]
    decisions: int
    rollouts: tuple[int, ...]
    sides: tuple[int, ...]


SHAPES = {
    "7b": Shape(openvla_7b_config, 160, (1, 8, 32, 64), (4096, 8192, 16384)),
    "tiny": Shape(openvla_tiny_config, 8, (1, 2), (64,)),
}


def random_policy(config: VLAConfig, device: torch.device) -> VLAPolicy:
    """Weights are made on the device, in bfloat16: normal matrices, gains of 1, biases of 0; the value head in float32."""
    with empty_parameters():
        policy = VLAPolicy(config)
    for name, parameter in list(policy.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        kind = torch.float32 if name.startswith("value_head.") else torch.bfloat16
        weight = torch.empty(parameter.shape, dtype=kind, device=device)
        weight = weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(0.0 if leaf == "bias" else 1.0)
        setattr(policy.get_submodule(owner), leaf, nn.Parameter(weight))
    return policy.to(device)


def observations(config: VLAConfig, num: int, device: torch.device) -> TensorDict:
    size = config.image_size
    td = TensorDict({keys.IMAGE: torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, device=device)}, [num])
    td[keys.INSTRUCTION] = INSTRUCTION
    return td


def decisions(policy: VLAPolicy, num: int, device: torch.device) -> TensorDict:
    config = policy.config
    td = observations(config, num, device).exclude(keys.INSTRUCTION)
    td[keys.INSTRUCTION_TOKENS] = policy.prompts([INSTRUCTION]).to(device).expand(num, -1).clone()
    td[keys.ACTION_TOKENS] = torch.randint(0, config.num_bins, (num, config.chunk_size, config.action_dim), device=device)
    td[keys.LOG_PROBS] = torch.full(td[keys.ACTION_TOKENS].shape, -torch.tensor(float(config.num_bins)).log().item(), device=device)
    td[keys.next_(keys.NUM_STEPS)] = torch.full((num, 1), config.chunk_size, device=device)
    return td


def round_of_experience(policy: VLAPolicy, num: int, device: torch.device) -> TensorDict:
    """Two environments [2, num / 2] whose episodes end with the round."""
    td = decisions(policy, num, device).reshape(2, num // 2)
    td[keys.STATE_VALUE] = torch.randn(*td.batch_size, 1, device=device)
    end = torch.zeros(*td.batch_size, 1, dtype=torch.bool, device=device)
    end[:, -1] = True
    reward = torch.randn(*td.batch_size, 1, device=device)
    after = {keys.REWARD: reward, "sparse_reward": reward, keys.DONE: end, keys.TERMINATED: end, keys.SUCCESS: end}
    after |= {keys.OBSERVATION: td[keys.OBSERVATION].clone(), keys.INSTRUCTION_TOKENS: td[keys.INSTRUCTION_TOKENS].clone()}
    td["next"].update(after | {keys.SIGNALS: TensorDict(batch_size=td.batch_size)})
    return td


def pairs(policy: VLAPolicy, num: int, device: torch.device) -> TensorDict:
    """Two pairs of trajectories of num / 4 decisions, in two stages."""
    rows, length = decisions(policy, num, device), num // 4
    rows["reference_log_prob"] = rows[keys.LOG_PROBS].sum(dim=(1, 2))
    position = torch.arange(length, device=device).repeat(4)
    return TensorDict(
        decisions=rows,
        trajectory=torch.arange(4, device=device).repeat_interleave(length),
        decision=torch.arange(len(position), device=device),
        position=position,
        stage_index=(2 * position) // length,
        preferred=torch.ones(2, 2, dtype=torch.int64, device=device),
        cost=torch.rand(2, 2, 2, device=device),
    )


class OneBatch(LightningDataModule):
    """The same batch again and again, and what the modules read of their data."""

    temperature, env_steps, lag, group_size, stage_names = 1.0, 0, 0, None, ("first", "second")
    reward = SimpleNamespace(gamma=0.99, bootstrap_truncation=True)
    seconds = {"simulate": 1.0, "policy": 1.0, "wait": 1.0}

    def __init__(self, batch: TensorDict, steps: int) -> None:
        super().__init__()
        self.batch, self.steps = batch, steps

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps, batch_size=None, collate_fn=lambda batch: batch)


class Stopwatch(Callback):
    """Seconds of each step, and what the loss was."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        wait(pl_module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        wait(pl_module.device)
        self.seconds.append(time.perf_counter() - self.started)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], Any], device: torch.device, warmup: int, repeats: int) -> float:
    seconds = []
    for _ in range(warmup + repeats):
        wait(device)
        started = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warmup:])


def matmul_rate(device: torch.device, sides: tuple[int, ...], repeats: int) -> dict[int, float]:
    """FLOPs/s of bfloat16 products of square matrices, by side; ten at a time, so that starting them costs nothing."""
    rates = {}
    for side in sides:
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        seconds = median_seconds(lambda a=a, b=b: [a @ b for _ in range(10)], device, 3, repeats)
        rates[side] = 10 * 2 * side**3 / seconds
    return rates


def fitting_micro_batch(policy: VLAPolicy, device: torch.device, most: int, checkpointing: bool) -> int:
    """The largest power of two up to ``most`` decisions that the memory plan lets onto the card."""
    if device.type != "cuda":
        return most
    capacity, counts = torch.cuda.get_device_properties(device).total_memory, parameter_bytes(policy)
    sizes = [2**power for power in range(12) if 2**power <= most]
    plans = {size: plan_memory(policy.config, counts, Workload(size, precision="bf16-mixed", adapter=True, checkpointing=checkpointing)) for size in sizes}
    if fits := [size for size, plan in plans.items() if plan.total < capacity]:
        return max(fits)
    raise SystemExit(
        f"memory: one decision needs {plans[1].total / 2**30:.1f} GiB, the card has {capacity / 2**30:.1f}; give --checkpointing, or a larger card"
    )


def measure_phase(module: LightningModule, batch: TensorDict, device: torch.device, warmup: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step through Lightning's trainer, and the most memory that was taken (GiB; 0 on the CPU)."""
    watch = Stopwatch()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, precision="bf16-mixed", max_epochs=1, callbacks=[watch], **quiet)
    trainer.fit(module, OneBatch(batch, warmup + repeats))
    loss = float(trainer.callback_metrics["train/loss"])
    if not torch.isfinite(torch.tensor(loss)):
        raise SystemExit(f"loss={loss}: these numbers would be worth nothing")
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {"seconds": statistics.median(watch.seconds[warmup:]), "peak_gib": peak}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one machine."""
    shape, device = SHAPES[arguments.shape], torch.device(arguments.device)
    torch.manual_seed(0)
    rates = matmul_rate(device, shape.sides, arguments.repeats)
    policy = random_policy(shape.config(), device)
    prompt = int((policy.prompts([INSTRUCTION]) != policy.config.pad_id).sum())
    lora = LoraSettings(rank=32, alpha=16)
    add_adapter(policy, lora)  # the plan counts it; the modules merge it and add their own
    micro = arguments.micro_batch_size or fitting_micro_batch(policy, device, shape.decisions, arguments.checkpointing)
    common: dict[str, Any] = {"micro_batch_size": micro, "checkpointing": arguments.checkpointing, "lora": lora}
    phases = {}
    interaction = partial(StaPPOModule, policy, num_epochs=1, minibatch_size=shape.decisions, value_warmup_rounds=0, **common)
    preference = partial(StaTPOModule, policy, **common)
    for name, make, batch, value in (("StA-PPO update", interaction, round_of_experience, True), ("StA-TPO step", preference, pairs, False)):
        module = make()
        found = measure_phase(module, batch(policy.to(device), shape.decisions, device), device, arguments.warmup, arguments.repeats)
        flops = decision_flops(policy, prompt_length=prompt, value=value)
        rate, tokens = (shape.decisions * number / found["seconds"] for number in (flops.training, flops.positions))
        phases[name] = found | {"tokens_per_second": tokens, "model_flops_per_second": rate, "share_of_matmul": rate / max(rates.values())}
        del module
    policy.to(device).eval()
    rollouts = {}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for size in shape.rollouts:
            td = observations(policy.config, size, device)
            seconds = median_seconds(lambda td=td: policy.act(td, temperature=1.0, value=True), device, arguments.warmup, arguments.repeats)
            rollouts[size] = {"seconds": seconds, "decisions_per_second": size / seconds}
    config = vars(arguments) | {"micro_batch_size": micro, "decisions": shape.decisions, "lora": {"rank": 32, "alpha": 16}, "policy": policy.config.to_dict()}
    return {"config": config, "matmul_flops_per_second": rates, "phases": phases, "rollouts": rollouts}


def tables(found: dict[str, Any]) -> list[Table]:
    peak = max(found["matmul_flops_per_second"].values())
    title = f"{found['config']['decisions']} decisions an update, {found['config']['micro_batch_size']} at once; matrix products: {peak / 1e12:.3g} TFLOP/s"
    phases = Table("", "s", "tokens/s", "model TFLOP/s", "share", "peak GiB", title=title)
    for name, row in found["phases"].items():
        numbers = (row["seconds"], row["tokens_per_second"], row["model_flops_per_second"] / 1e12)
        phases.add_row(name, *(f"{number:.3g}" for number in numbers), f"{row['share_of_matmul']:.1%}", f"{row['peak_gib']:.1f}")
    rollouts = Table("decisions at once", "ms", "decisions/s", title="rollouts")
    for size, row in found["rollouts"].items():
        rollouts.add_row(str(size), f"{1000 * row['seconds']:.1f}", f"{row['decisions_per_second']:.1f}")
    return [phases, rollouts]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--micro_batch_size", type=int, help="decisions in one forward and backward pass; default: the most that fit")
    parser.add_argument("--checkpointing", action="store_true", help="run transformer blocks again in the backward pass")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/openvla_<shape>.json")
    arguments = parser.parse_args(argv)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA GPU here; --shape tiny --device cpu runs the same path on the CPU")
    output = arguments.output or RESULTS / f"openvla_{arguments.shape}.json"
    arguments.output = None  # where it lies is no part of what was measured
    found = measure(arguments)
    for table in tables(found):
        console().print(table)
    console().print(f"written to {write_json(output, found | {'hardware': hardware(), 'versions': package_versions()})}")


if __name__ == "__main__":
    main()
