"""Where the time of a StA-PPO round goes: controller, physics, signals, rendering, policy, update.

Run alone on the machine: python benchmarks/round_time.py [--rounds 3] [--config configs/sta_ppo.yaml]

Two measurements: whole rounds as `stare fit` runs them (simulate / policy / update, all processes), and one environment on its own with
timers around the simulator's parts, whose shares split the simulation time of the round.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.table import Table
from saving import save

from stare_lit import keys
from stare_lit.envs import maniskill
from stare_lit.evaluation.report import console
from stare_lit.models.vla import VLAPolicy

RESULTS = Path(__file__).parent / "results"


def timed(seconds: dict[str, float], name: str, function: Callable) -> Callable:
    """``function``, its wall time added to ``seconds[name]``."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - started
        return result

    return wrapper


def simulator_shares(policy: VLAPolicy, task: str, temperature: float, decisions: int) -> dict[str, float]:
    """Seconds a decision in each part of one environment on one thread, driven by ``policy``."""
    torch.set_num_threads(1)
    env = maniskill.ManiSkillEnv(task, chunk_size=policy.chunk_size)
    seconds: dict[str, float] = defaultdict(float)
    simulator = env.simulator
    stepper = env._stepper
    stepper._arm_targets = timed(seconds, "controller (inverse kinematics)", stepper._arm_targets)
    stepper._physics = SimpleNamespace(step=timed(seconds, "physics", stepper._physics.step))
    simulator.evaluate = timed(seconds, "success test", simulator.evaluate)
    env._measure = timed(seconds, "signals", env._measure)
    maniskill.camera_images = timed(seconds, "rendering", maniskill.camera_images)
    prompt = policy.prompts(list(env.instructions))[0]
    tensordict, total = env.reset(), 0.0
    seconds.clear()
    for _ in range(decisions):
        tensordict[keys.INSTRUCTION_TOKENS] = prompt
        with torch.no_grad():
            batch = policy.act(tensordict[None], temperature=temperature)
        tensordict[keys.ACTION_CHUNK] = batch[0][keys.ACTION_CHUNK]
        started = time.perf_counter()
        after = env._step(tensordict)
        total += time.perf_counter() - started
        kept = dict(seconds)
        tensordict = env._reset() if after[keys.DONE] else after
        seconds.update(kept)  # a reset is not part of a decision
    env.close()
    parts = {name: value / decisions for name, value in seconds.items()}
    return parts | {"Python around them": total / decisions - sum(parts.values())}


def whole_rounds(config: str, rounds: int) -> dict[str, float]:
    """Median seconds of a round in simulation, policy and update, as ``stare fit`` runs it; the first round (warm-up of everything) is left out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stare_lit", "fit", "--config", config, "--run_dir", f"{folder}/run", f"--trainer.max_epochs={rounds + 1}"]
        command += ['--trainer.callbacks=[{"class_path": "stare_lit.callbacks.NonFiniteGuard"}]']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = [row for path in Path(folder).rglob("metrics.csv") for row in csv.DictReader(path.open()) if row.get("time/update")]
    return {name: statistics.median(float(row[f"time/{name}"]) for row in rows[1:]) for name in ("simulate", "policy", "update")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sta_ppo.yaml")
    parser.add_argument("--policy", default="policies/push_cube_sft")
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decisions", type=int, default=150)
    arguments = parser.parse_args()
    round_seconds = whole_rounds(arguments.config, arguments.rounds)
    shares = simulator_shares(VLAPolicy.from_pretrained(arguments.policy), arguments.task, arguments.temperature, arguments.decisions)
    total, alone = sum(round_seconds.values()), sum(shares.values())
    rows = {name: round_seconds["simulate"] * value / alone for name, value in shares.items()}
    rows |= {"policy": round_seconds["policy"], "update": round_seconds["update"]}
    table = Table("part", "s a round", "share", "ms a decision, one environment alone", title=f"{arguments.config}: {total:.1f} s a round")
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}", f"{value / total:.0%}", f"{1000 * shares[name]:.2f}" if name in shares else "")
    console().print(table)
    save(RESULTS / "round_time.json", arguments, {"round_seconds": round_seconds, "decision_seconds_alone": shares, "split": rows})


if __name__ == "__main__":
    main()
