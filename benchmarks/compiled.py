"""Does `torch.compile` pay? A decision and a minibatch of the interaction phase, eager and compiled, and what the compiler takes first.

Run alone on the machine: python benchmarks/compiled.py [--pairs 8] [--device cpu]

Both sides are the same policy on the same rows: acting on ``num_envs`` observations without gradients, and forward and backward of a minibatch as PPO
makes it (log-probabilities, entropy, value). They take turns; ratios are medians of pairs. The first calls, in which everything is compiled, are timed
apart, and say after how many minibatches compiling has paid. Minibatches of two sizes take turns, as the rows of a round seldom divide evenly.
"""

import argparse
import copy
import statistics
from functools import partial
from pathlib import Path

import torch
from openvla_7b import median_seconds
from rich.table import Table
from saving import save
from tensordict import TensorDictBase
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from stare_lit import keys
from stare_lit.envs.factory import make_env
from stare_lit.evaluation.report import console
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.towers import ConvStem

RESULTS = Path(__file__).parent / "results"


def compile_blocks(policy: nn.Module, backend: str) -> None:
    """Compile every transformer block and small convolutional tower of ``policy`` for itself: seconds at the first call, not the minutes of one graph."""
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer | ConvStem):
            module.compile(backend=backend)


def learn(policy: VLAPolicy, rows: TensorDictBase) -> None:
    """Forward and backward on ``rows``."""
    new = policy.evaluate_actions(rows, temperature=1.0, value=True)
    (new["log_probs"].mean() + new["entropy"].mean() + new[keys.STATE_VALUE].mean()).backward()
    policy.zero_grad()


def main(line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="policies/push_cube_sft")
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--minibatch_size", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--output", default=str(RESULTS / "compiled.json"))
    arguments = parser.parse_args(line)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = VLAPolicy.from_pretrained(arguments.policy).to(arguments.device)
    env = make_env(arguments.task, num_envs=2, num_workers=0, tokenize=policy.prompts, **policy.environment)
    seen = env.reset().to(arguments.device)
    env.close()
    acting, first, second = (torch.cat([seen] * num)[:num].clone() for num in (arguments.num_envs, arguments.minibatch_size, arguments.minibatch_size + 1))
    for rows in (first, second):
        policy.act(rows, temperature=1.0)
    sides = {"eager": policy, "compiled": copy.deepcopy(policy)}
    compile_blocks(sides["compiled"], arguments.backend)

    def decision(name: str, repeats: int) -> float:
        return median_seconds(partial(sides[name].act, acting, temperature=1.0, value=True), torch.device(arguments.device), 0, repeats)

    def minibatches(name: str) -> float:
        return sum(median_seconds(partial(learn, sides[name], rows), torch.device(arguments.device), 0, 1) for rows in (first, second))

    warm_up = {name: {"decision": decision(name, 1), "minibatches": minibatches(name)} for name in sides}
    seconds: dict[str, dict[str, list[float]]] = {name: {"decision": [], "minibatch": []} for name in sides}
    for pair in range(arguments.pairs):
        for name in list(sides)[:: 1 if pair % 2 else -1]:
            seconds[name]["decision"].append(decision(name, 10))
            seconds[name]["minibatch"].append(minibatches(name) / 2)
    table = Table("", "eager, ms", "compiled, ms", "speed-up [min-max]", title=f"{arguments.policy}, {arguments.device}")
    found = {}
    for part in ("decision", "minibatch"):
        ratios = sorted(eager / compiled for eager, compiled in zip(seconds["eager"][part], seconds["compiled"][part], strict=True))
        medians = {name: statistics.median(seconds[name][part]) for name in sides}
        found[part] = {"seconds": medians, "speed_up": statistics.median(ratios), "ratios": ratios}
        table.add_row(part, *(f"{1e3 * value:.1f}" for value in medians.values()), f"{found[part]['speed_up']:.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")
    console().print(table)
    extra = sum(warm_up["compiled"].values()) - sum(warm_up["eager"].values())
    saved = found["minibatch"]["seconds"]["eager"] - found["minibatch"]["seconds"]["compiled"]
    console().print(f"compiling takes {extra:.1f} s" + (f", saved again after {extra / saved:.0f} minibatches" if saved > 0 else "; nothing is saved"))
    save(arguments.output, arguments, {"parts": found, "warm_up_seconds": warm_up})


if __name__ == "__main__":
    main()
