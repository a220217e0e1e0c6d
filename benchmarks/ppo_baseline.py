"""StA-PPO against ManiSkill's own PPO baseline: environment steps and wall time to 90 % success from state observations.

Run alone on the machine: python benchmarks/ppo_baseline.py --baseline ppo.py   (about an hour on two cores; run again, it goes on where it stopped)

``ppo.py`` is ``examples/baselines/ppo/ppo.py`` of https://github.com/haosulab/ManiSkill (recorded here with commit 8efc8d2), run unmodified; its sha256
goes into the results. It is made for thousands of environments on a GPU; on a CPU ManiSkill has one environment a scene, so it gets stock environments
in gymnasium's AsyncVectorEnv, half of them in each of two processes (see `ppo_arms/stock_env.py`), and settings tuned for that (``STOCK``).

Arms of each task and seed, same controller, same number of processes, one torch thread each:

- ``stock``: the baseline from scratch, on its dense reward
- ``scratch``: StA-PPO from scratch
- ``demos``: demonstrations, SFT, then StA-PPO; the steps and the wall time of all three count
- ``few``, ``few_sparse``: StA-PPO, and plain PPO on the sparse reward, both from one SFT policy of so few demonstrations that it leaves them work

A cell is over at `TARGET` greedy success on the validation seeds, or censored at a cap. Wall time is from the start of the cell's first process, so
imports and simulator starts count; evaluations do not, on either side. Each cell is stored as it ends.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "ppo_arms"))
from record import Limits, as_arguments
from tried import TRIED

from stare_lit.data.trajectories import Trajectories
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.evaluation.report import console, hardware, package_versions, write_json

ROOT = Path(__file__).parents[1]
ARMS_FOLDER = Path(__file__).parent / "ppo_arms"
RESULT = Path(__file__).parent / "results" / "ppo_baseline.json"

TARGET = 0.9
NUM_WORKERS = 2
HORIZON = 50
SEEDS = (0, 1, 2)
ARMS = ("stock", "scratch", "demos", "few", "few_sparse")  # in this order for each seed and task, so that a drift of the machine hits all alike
FIRST_SEED = SEED_RANGES["validation"][0]
LIMITS = {
    "PushCube-v1": Limits(TARGET, max_steps=160_000, max_seconds=400.0, every=10_000, first_seed=FIRST_SEED),
    "LiftPegUpright-v1": Limits(TARGET, max_steps=200_000, max_seconds=240.0, every=20_000, first_seed=FIRST_SEED),
}
FEW = {  # so few that they leave work to do: 63 and 39 % greedy success, seed 0
    "PushCube-v1": ["--data.num_episodes=9", "--data.batch_size=32", "--trainer.max_steps=150"],
    "LiftPegUpright-v1": ["--data.num_episodes=30", "--trainer.max_steps=400"],
}
CONFIGS = {"PushCube-v1": "push_cube", "LiftPegUpright-v1": "lift_peg_upright"}
STOCK = {
    "num_envs": 16, "num_steps": 50, "num_minibatches": 8, "update_epochs": 8, "gamma": 0.8, "gae_lambda": 0.9, "learning_rate": 3e-4,
}  # fmt: skip
"""Of the baseline; what is not named is its default."""

STATISTICS = {"class_path": "stare_lit.callbacks.StateStatistics"}


def stock_command(baseline: Path, task: str, seed: int, record: Path, started: float, limits: Limits) -> list[str]:
    """The baseline; its own evaluation runs the validation seeds about every ``limits.every`` steps (it takes no eval_freq of 1)."""
    num_envs, batch = int(STOCK["num_envs"]), int(STOCK["num_envs"] * STOCK["num_steps"])
    flags = {"env_id": task, "seed": seed, "control_mode": "pd_ee_delta_pose", "total_timesteps": 2 * limits.max_steps + 4 * batch, **STOCK}
    flags |= {"num_eval_envs": num_envs, "num_eval_steps": HORIZON * -(-limits.num_episodes // num_envs), "eval_freq": max(2, round(limits.every / batch))}
    own = [f"--baseline={baseline}", f"--num_workers={NUM_WORKERS}", *as_arguments(record, started, limits)]
    switches = ["--no-capture_video", "--no-save_model", "--no-cuda"]
    return [sys.executable, str(ARMS_FOLDER / "stock.py"), *own, "--", *(f"--{name}={value}" for name, value in flags.items()), *switches]


def fit_command(config: str, seed: int, run_dir: Path, *arguments: str) -> list[str]:
    """`stare fit` of a shipped configuration."""
    return [
        sys.executable, "-m", "stare_lit", "fit", f"--config=configs/state/{config}.yaml", f"--run_dir={run_dir}", f"--seed_everything={seed}",
        f"--data.seed={seed}", f"--data.num_workers={NUM_WORKERS}", "--trainer.enable_progress_bar=false", *arguments,
    ]  # fmt: skip


def ppo_command(config: str, seed: int, run_dir: Path, record: Path, started: float, limits: Limits, charged: dict[str, float], *arguments: str) -> list[str]:
    """StA-PPO, recorded in place of the configuration's own evaluation; as many rounds as the cap has, which is what a schedule falls over."""
    settings = {"record": str(record), "started": started, "limits": vars(limits), "num_workers": NUM_WORKERS}
    if charged:
        settings |= {"charged_steps": charged["env_steps"], "charged_seconds": charged["seconds"]}
    data = yaml.safe_load((ROOT / "configs" / "state" / f"{config}.yaml").read_text())["data"]["init_args"]
    rounds = -(-limits.max_steps // (data["num_envs"] * data["decisions_per_env"]))
    callbacks = ([] if charged else [STATISTICS]) + [{"class_path": "ours.Record", "init_args": settings}]
    return fit_command(config, seed, run_dir, f"--trainer.callbacks={json.dumps(callbacks)}", f"--trainer.max_epochs={rounds}", *arguments)


def run(command: list[str], log: Path) -> float:
    """Seconds that ``command`` took, its output in ``log``. Raises RuntimeError with its last lines where it fails."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ARMS_FOLDER)])}
    started = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{' '.join(command)}\nfailed with exit code {code}; the end of {log}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - started


def imitate(task: str, seed: int, folder: Path, name: str, arguments: list[str]) -> dict[str, Any]:
    """Demonstrations and SFT, from nothing; what they took. Kept in ``folder`` for these ``arguments``, for several arms start from it."""
    path = folder / f"{name}.json"
    if not path.is_file() or json.loads(path.read_text())["arguments"] != arguments:
        demos, run_dir = folder / f"{name}-demos-{os.getpid()}", folder / f"{name}-sft-{os.getpid()}"
        policy = str(run_dir / "policy")
        save = f"--trainer.callbacks={json.dumps([STATISTICS, {'class_path': 'ours.Save', 'init_args': {'path': policy}}])}"
        seconds = run(fit_command(f"{CONFIGS[task]}_sft", seed, run_dir, f"--data.folder={demos}", save, *arguments), folder / f"{name}.log")
        stored = Trajectories(demos)
        lengths, attempts = stored.episodes["length"], stored.infos[-1]["seeds"][1] - stored.metadata.config["seed_range"][0]
        steps = int(lengths.sum()) + HORIZON * (attempts - stored.num_episodes)  # an expert that fails does so to the end
        write_json(path, {"seconds": seconds, "env_steps": steps, "demos": stored.num_episodes, "attempts": attempts, "policy": policy, "arguments": arguments})
    return json.loads(path.read_text())


def run_cell(arm: str, task: str, seed: int, *, baseline: Path, root: Path, limits: Limits, smaller: dict[str, list[str]]) -> dict[str, Any]:
    """One learning run, as a row of the results."""
    folder = (root / task / str(seed)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record, run_dir = folder / f"{arm}.json", folder / f"{arm}-{os.getpid()}-{time.monotonic():.0f}"
    charged: dict[str, float] = {}
    arguments = smaller.get("ppo", [])
    if arm not in ("stock", "scratch"):
        few = arm.startswith("few")
        charged = imitate(task, seed, folder, "sft_few" if few else "sft", [*(FEW[task] if few else []), *smaller.get("sft", [])])
        arguments = [f"--model.policy.path={charged['policy']}", *arguments, *(["--data.reward.mode=sparse"] if arm == "few_sparse" else [])]
    started = time.monotonic()
    if arm == "stock":
        command = stock_command(baseline, task, seed, record, started, limits)
    else:
        config = f"{CONFIGS[task]}_{'ppo' if arm == 'scratch' else 'finetune'}"
        command = ppo_command(config, seed, run_dir, record, started, limits, charged, *arguments)
    run(command, folder / f"{arm}.log")
    found = json.loads(record.read_text())
    best = max(point["success"] for point in found["points"])
    end = found["points"][-1]
    shown = [word.replace(f"{baseline.parent}{os.sep}", "").replace(f"{ROOT}{os.sep}", "") for word in command[1:]]  # without the folders of this machine
    paid = {name: value for name, value in charged.items() if name not in ("policy", "arguments")}
    return {"env_steps": end["env_steps"], "seconds": end["seconds"], "best_success": best, "charged": paid, **found, "command": shown}


def table(cells: dict[str, Any], tasks: list[str], seeds: list[int]) -> Table:
    """A row an arm; a cell that ended at a cap is marked `>`, with its best success."""
    found = Table(title=f"environment steps and wall time to {TARGET:.0%} greedy success (> censored at the cap)", title_justify="left")
    for column in ("task", "arm", *(f"seed {seed}" for seed in seeds)):
        found.add_column(column)
    for task in tasks:
        for arm in ARMS:
            shown = []
            for seed in seeds:
                cell = cells.get(f"{task}/{arm}/{seed}")
                mark = "" if cell is None or cell["reached"] else "> "
                best = "" if cell is None or cell["reached"] else f" (best {cell['best_success']:.2f})"
                shown.append("-" if cell is None else f"{mark}{cell['env_steps']:,}, {cell['seconds']:.0f} s{best}")
            found.add_row(task, arm, *shown)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="ppo.py of ManiSkill's examples/baselines/ppo, unmodified")
    parser.add_argument("--tasks", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--root", type=Path, default=Path("runs/ppo_baseline"), help="where the runs write")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--tiny", action="store_true", help="a few steps of each cell, to see that everything runs")
    given = parser.parse_args(argv)
    if not given.baseline.is_file():
        raise ValueError(f"baseline={str(given.baseline)!r}: no such file; download examples/baselines/ppo/ppo.py of https://github.com/haosulab/ManiSkill")
    sha = hashlib.sha256(given.baseline.read_bytes()).hexdigest()
    content = json.loads(given.output.read_text()) if given.output.is_file() else {"cells": {}}
    if content.get("baseline_sha256", sha) != sha:
        raise ValueError(f"baseline={str(given.baseline)!r}: {given.output} was made with another file; use that one, or another --output")
    smaller: dict[str, list[str]] = {}
    if given.tiny:
        smaller = {"sft": ["--data.num_episodes=2", "--data.batch_size=8", "--trainer.max_steps=2"], "ppo": ["--data.decisions_per_env=5"]}
    for seed in given.seeds:
        for task in given.tasks:
            for arm in given.arms:
                name = f"{task}/{arm}/{seed}"
                if name in content["cells"]:
                    continue
                console().print(f"{name} ...")
                limits = replace(LIMITS[task], max_steps=80, every=80, num_episodes=2) if given.tiny else LIMITS[task]
                cell = run_cell(arm, task, seed, baseline=given.baseline.resolve(), root=given.root, limits=limits, smaller=smaller)
                content["cells"][name] = cell | {"limits": vars(limits)}
                configs = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "state").glob("*.yaml"))}
                content |= {"baseline_sha256": sha, "stock": STOCK, "configs": configs, "tried": TRIED, "hardware": hardware(), "versions": package_versions()}
                write_json(given.output, content)
    console().print(table(content["cells"], given.tasks, given.seeds))
    console().print(f"written to {given.output}")


if __name__ == "__main__":
    main()
