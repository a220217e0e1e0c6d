"""Preference learning with stored reference log-probabilities against the usual two models, one pair at a time. Targets: at least 3 times the
pairs a second at equal peak memory, and a peak lower by one copy of the model.

Run alone on the machine: python benchmarks/tpo_speed.py [--pairs 5]

Both sides take the same pairs and the same loss (`sta_tpo_loss`), precision and optimizer, and one optimizer step for each batch of pairs:
- two models: a frozen copy of the policy is the reference, pairs one after the other, their gradients added up;
- ours: `StaTPOModule` on batches of `PreferenceDataModule` with ``whole_states`` (a decision that several pairs compare is evaluated once);
- ours, bounded: the same with the largest ``micro_batch_size`` whose peak is not above that of two models (which costs one more forward).
Times alternate in one process; that all sides give the same gradient is checked first. Peak memory (resident, above what the process held when
its data was ready) is measured with one process a side; the copy of the model with a larger policy, one pair at a time on both sides.
Trajectories are made up: eight from each state, eight pairs of them, two stages, as PushCube's with the shipped configuration.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.table import Table
from saving import save
from tensordict import TensorDict
from torch import nn

from stare_lit import keys
from stare_lit.algorithms.sta_tpo import StaTPOModule
from stare_lit.data.batches import BatchLoader
from stare_lit.data.pairs import Pairs
from stare_lit.data.preferences import PairBatches
from stare_lit.evaluation.report import console
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.presets import tiny
from stare_lit.objectives.executed import sum_executed

RESULTS = Path(__file__).parent / "results"
TARGET, SAMPLES, PAIRS, STAGES = 3.0, 8, 8, 2


def make_policy(size: dict[str, int], image_size: int) -> VLAPolicy:
    torch.manual_seed(0)
    return tiny(4, image_size=image_size, **size)


def made_up(policy: VLAPolicy, arguments: argparse.Namespace) -> PairBatches:
    """Pairs of ``states`` initial states, and the policy's own log-probabilities as the reference."""
    generator = torch.Generator().manual_seed(0)
    length, number = arguments.decisions, arguments.states * SAMPLES
    num, size = number * length, arguments.image_size
    rows = TensorDict(batch_size=[num])
    rows[keys.IMAGE] = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)
    rows[keys.STATE] = torch.randn(num, 4, generator=generator)
    rows[keys.INSTRUCTION_TOKENS] = policy.prompts(["push the cube to the target"]).expand(num, -1).clone()
    rows[keys.ACTION_TOKENS] = torch.randint(0, policy.config.num_bins, (num, policy.chunk_size, 7), generator=generator)
    rows[keys.next_(keys.NUM_STEPS)] = torch.full((num, 1), policy.chunk_size)
    first, second = torch.triu_indices(SAMPLES, SAMPLES, offset=1)
    drawn = [torch.randperm(len(first), generator=generator)[:PAIRS] for _ in range(arguments.states)]
    a, b = (torch.cat([side[chosen] + SAMPLES * state for state, chosen in enumerate(drawn)]) for side in (first, second))
    preferred = torch.randint(0, 2, (len(a), STAGES), generator=generator) * 2 - 1
    stage = (torch.arange(length) * STAGES // length).expand(number, -1)
    stored: Any = SimpleNamespace(rows=lambda index, wanted: rows[index], layout=())  # what a folder of trajectories would give
    with torch.no_grad():
        reference = torch.cat([log_prob(policy, part) for part in rows.split(64)])
    state = torch.arange(number) // SAMPLES
    return PairBatches(stored, state, torch.arange(number) * length, stage, torch.rand(number, STAGES), reference, Pairs(a, b, preferred))


def log_prob(policy: nn.Module, decisions: TensorDict) -> torch.Tensor:
    return sum_executed(policy.evaluate_actions(decisions)["log_probs"].float(), decisions[keys.next_(keys.NUM_STEPS)].squeeze(-1))


class Side:
    """One way to learn from a batch of pairs: ``step(chosen)`` makes its gradients, ``update`` an optimizer step of them."""

    def __init__(self, policy: VLAPolicy, batches: PairBatches, precision: str, *, two_models: bool, micro_batch_size: int | None = None) -> None:
        self.batches, self.two_models = batches, two_models
        self.module = StaTPOModule(copy.deepcopy(policy) if two_models else policy, micro_batch_size=micro_batch_size)
        self.reference = policy.requires_grad_(False) if two_models else None
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-5)
        self.autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if precision == "bf16-mixed" else nullcontext

    def step(self, chosen: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        for part in chosen.split(1 if self.two_models else len(chosen)):
            batch = self.batches[part]
            with self.autocast():
                if self.reference is not None:
                    with torch.no_grad():
                        batch["decisions", "reference_log_prob"] = log_prob(self.reference, batch["decisions"])
                loss = self.module.loss(batch).mean * len(part) / len(chosen)
            loss.backward()

    def update(self, chosen: torch.Tensor) -> None:
        self.step(chosen)
        self.optimizer.step()

    def gradient(self, chosen: torch.Tensor) -> torch.Tensor:
        self.step(chosen)
        return torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])


def resident(peak: bool) -> int:
    """Bytes, now or at most so far."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(arguments: argparse.Namespace) -> int:
    """In a process of its own: the peak of two updates above what was held before the side was made (with its one policy)."""
    policy = make_policy(arguments.size, arguments.image_size)
    batches = made_up(policy, arguments)
    before = resident(peak=False)
    side = Side(policy, batches, arguments.precision, two_models=arguments.side == "two models", micro_batch_size=arguments.micro_batch_size)
    for _ in range(2):
        side.update(torch.arange(arguments.batch))
    return resident(peak=True) - before


def measure_peak(arguments: argparse.Namespace, **settings: Any) -> int:
    content = json.dumps(vars(arguments) | settings)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what a tensor frees leaves the process at once
    done = subprocess.run([sys.executable, __file__, "--measure", content], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def rates(arguments: argparse.Namespace, bounded: int | None) -> dict[str, list[float]]:
    """Pairs a second of each side, one entry a turn; the first turn warms up and is left out."""
    policies = [make_policy(arguments.size, arguments.image_size) for _ in range(3)]
    batches = made_up(policies[0], arguments)
    sides = {
        "two models": Side(policies[0], batches, arguments.precision, two_models=True),
        "ours": Side(policies[1], batches, arguments.precision, two_models=False),
        "ours, bounded": Side(policies[2], batches, arguments.precision, two_models=False, micro_batch_size=bounded),
    }
    groups = batches.seed[batches.pairs.a]
    order = torch.cat(list(BatchLoader(Numbers(len(batches)), arguments.batch, groups=groups)))
    gradients = [side.gradient(order[: arguments.batch]) for side in sides.values()]
    differences = [float((gradient - gradients[0]).norm() / gradients[0].norm()) for gradient in gradients[1:]]
    assert max(differences) < (0.05 if arguments.precision == "bf16-mixed" else 1e-3), f"the sides differ in their gradients: {differences}"
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.pairs + 1):
        chosen = order.split(arguments.batch)[turn % (len(order) // arguments.batch)]
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            sides[name].update(chosen)
            found[name].append(len(chosen) / (time.perf_counter() - started))
    return {name: values[1:] for name, values in found.items()}


class Numbers:
    """Batches that are the row numbers themselves."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: torch.Tensor) -> Any:
        return index


def main(line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="turns, each an update by every side")
    parser.add_argument("--batch", type=int, default=16, help="trajectory pairs of an optimizer step")
    parser.add_argument("--states", type=int, default=8)
    parser.add_argument("--decisions", type=int, default=13, help="of a trajectory")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--size", type=json.loads, default={"hidden_size": 192, "num_layers": 3}, help="of the policy whose speed is measured")
    parser.add_argument("--large", type=json.loads, default={"hidden_size": 640, "num_layers": 8}, help="of the policy whose copy is looked for")
    parser.add_argument("--precision", default="bf16-mixed", choices=("bf16-mixed", "32-true"))
    parser.add_argument("--micro_batch_sizes", type=int, nargs="+", default=(96, 64, 48, 32, 24, 16, 8), help="tried from the left")
    parser.add_argument("--output", default=str(RESULTS / "tpo_speed.json"))
    arguments = parser.parse_args(line)
    peaks = {name: measure_peak(arguments, side=name, micro_batch_size=None) for name in ("two models", "ours")}
    bounded = None
    for bounded in arguments.micro_batch_sizes:
        peaks["ours, bounded"] = measure_peak(arguments, side="ours", micro_batch_size=bounded)
        if peaks["ours, bounded"] <= peaks["two models"]:
            break
    found = rates(arguments, bounded)
    ratios = {name: [a / b for a, b in zip(found[name], found["two models"], strict=True)] for name in found}
    table = Table("", "pairs/s", "times two models [min-max]", "peak MiB", title=f"preference, {arguments.batch} pairs a step, {arguments.precision}")
    for name, values in found.items():
        label = f"{name} (micro_batch_size {bounded})" if name == "ours, bounded" else name
        spread = f"{statistics.median(ratios[name]):.2f} [{min(ratios[name]):.2f}-{max(ratios[name]):.2f}]"
        table.add_row(label, f"{statistics.median(values):.1f}", spread, f"{peaks[name] / 2**20:.0f}")
    console().print(table)
    large = {"size": arguments.large, "states": 1, "batch": 1, "micro_batch_size": None}
    copies = {name: measure_peak(arguments, side=name, **large) for name in ("two models", "ours")}
    weights = sum(p.numel() * p.element_size() for p in make_policy(arguments.large, arguments.image_size).parameters())
    saved = copies["two models"] - copies["ours"]
    console().print(
        f"peak of a policy of {weights / 2**20:.0f} MiB, one pair at a time: two models {copies['two models'] / 2**20:.0f} MiB, ours "
        f"{copies['ours'] / 2**20:.0f} MiB: lower by {saved / weights:.2f} copies (target 1)"
    )
    speed = statistics.median(ratios["ours, bounded"])
    console().print(f"at equal peak memory {speed:.2f} times the pairs a second (target {TARGET}): {'yes' if speed >= TARGET else 'no'}")
    content = {"pairs_per_second": found, "ratios": ratios, "peak_bytes": peaks, "micro_batch_size": bounded, "target": TARGET}
    content |= {"large": {"weight_bytes": weights, "peak_bytes": copies, "copies_saved": saved / weights}, "torch_threads": torch.get_num_threads()}
    save(arguments.output, arguments, content)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(peak_bytes(argparse.Namespace(**json.loads(sys.argv[2]))))
    else:
        main()
