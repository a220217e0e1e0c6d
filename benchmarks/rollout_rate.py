"""Environment steps per second against stock ManiSkill, with camera images and with state observations, one step a decision.

Run alone on the machine: python benchmarks/rollout_rate.py [--workers 1 2 4 8] [--image_sizes 64 128] [--pairs 5] [--seconds 8]
On a GPU machine: python benchmarks/rollout_rate.py --workers 16 --batches 64 256 1024 --at 16 (CPU physics with GPU rendering, then batches on the GPU)

Stock: in each of N processes one ``gym.make`` environment (one on CPU physics is all that it takes) in a bare loop of random actions, the processes
not waiting for each other, which is the most favourable to it. Ours: ``make_env`` with N worker processes, stages, rewards and signals included, stepped
together by TorchRL's ``step_and_maybe_reset``. Both act by ``pd_ee_delta_pose`` with the task's own limit of steps, and resets count. Both stay alive
and are measured in turn, a pair at a time; the ratio is the median over pairs. Ours draws with light meshes unless --visuals says otherwise.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from saving import save
from torch import Tensor
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs.factory import make_env
from stare_lit.evaluation.report import console

RESULTS = Path(__file__).parent / "results" / "rollout_rate.json"


def make_stock(task: str, observation: str, image_size: int, **settings: Any) -> Any:
    """ManiSkill's environment as its documentation makes it."""
    import gymnasium
    import mani_skill.envs  # noqa: F401  registers the tasks

    sees = observation == "image"
    settings |= {"sensor_configs": {"width": image_size, "height": image_size}} if sees else {"render_backend": "none"}
    return gymnasium.make(task, obs_mode="rgb" if sees else "state", control_mode="pd_ee_delta_pose", **settings)


class StockEnv:
    """One scene on the CPU, one is all that it takes, in a bare loop of random actions."""

    def __init__(self, task: str, observation: str, image_size: int) -> None:
        render = "gpu" if torch.cuda.is_available() else "cpu"
        self.env = make_stock(task, observation, image_size, sim_backend="physx_cpu", render_backend=render)
        self.env.reset(seed=os.getpid())

    def rate(self, seconds: float) -> float:
        """Steps a second."""
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample())
            if terminated or truncated:
                self.env.reset()
            steps += 1
        return steps / (time.perf_counter() - started)


class StockBatch:
    """A batch of scenes on the GPU, reset by ManiSkill's own vector environment where they end."""

    def __init__(self, task: str, observation: str, image_size: int, num_envs: int) -> None:
        from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

        self.env = ManiSkillVectorEnv(make_stock(task, observation, image_size, num_envs=num_envs, sim_backend="physx_cuda"), auto_reset=True)
        self.env.reset(seed=os.getpid())

    def rate(self, seconds: float) -> float:
        """Steps a second of all scenes together."""
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.env.step(torch.rand(self.env.num_envs, 7, device=self.env.device) * 2 - 1)
            steps += self.env.num_envs
        torch.cuda.synchronize()
        return steps / (time.perf_counter() - started)


def serve(make: Callable[[], Any], connection: Any) -> None:
    """A process: measures what it has made for as many seconds as it is told, until it is told None."""
    torch.set_num_threads(1)
    side = make()
    connection.send(None)
    while (seconds := connection.recv()) is not None:
        connection.send(side.rate(seconds))


class Processes:
    """N processes that do not wait for each other."""

    def __init__(self, make: Callable[[], Any], num: int = 1) -> None:
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(num)]
        self.connections = [ours for ours, _ in pipes]
        for _, theirs in pipes:
            context.Process(target=serve, args=(make, theirs), daemon=True).start()
            theirs.close()  # so that a process that dies is an error here, not a hang
        for connection in self.connections:
            connection.recv()

    def rate(self, seconds: float) -> float:
        """Steps a second of all together."""
        for connection in self.connections:
            connection.send(seconds)
        return sum(connection.recv() for connection in self.connections)

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.send(None)


def no_tokens(texts: Sequence[str]) -> Tensor:
    """In place of a policy's tokenizer: collectors run with tokens, not with text."""
    return torch.zeros(len(texts), 1, dtype=torch.int64)


class Ours:
    """``make_env`` under random actions, as a collector runs it."""

    def __init__(self, task: str, observation: str, image_size: int, num_envs: int, **settings: Any) -> None:
        self.env: EnvBase = make_env(task, num_envs, tokenize=no_tokens, observation=observation, image_size=image_size, **settings)
        self.state = self.env.reset()

    def rate(self, seconds: float) -> float:
        """Steps a second of all together."""
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.state[keys.ACTION_CHUNK] = torch.rand(self.env.batch_size[0], 1, 7, device=self.env.device) * 2 - 1
            after, self.state = self.env.step_and_maybe_reset(self.state)
            steps += int(after["next", keys.NUM_STEPS].sum())
        return steps / (time.perf_counter() - started)

    def close(self) -> None:
        """End the processes."""
        self.env.close()


def compare(stock: Any, ours: Any, pairs: int, seconds: float) -> dict[str, Any]:
    """Rates of both in turn (the order alternates), after a turn of each that is not counted; their medians and the median ratio of a pair."""
    for side in (stock, ours):
        side.rate(seconds / 4)
    rates: dict[str, list[float]] = {"stock": [], "ours": []}
    for pair in range(pairs):
        turn = (("stock", stock), ("ours", ours))
        for name, side in turn if pair % 2 == 0 else reversed(turn):
            rates[name].append(side.rate(seconds))
    ratios = [ours / stock for stock, ours in zip(rates["stock"], rates["ours"], strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return medians | {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "pairs": rates}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="PushCube-v1")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of processes")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="environments in one batch of GPU physics; needs a GPU")
    parser.add_argument("--envs_per_worker", type=int, default=8, help="environments of ours in a process")
    parser.add_argument("--image_sizes", type=int, nargs="*", default=[64, 128], help="pixels; the first is measured over all --workers, the others at --at")
    parser.add_argument("--at", type=int, default=min(2, os.cpu_count() or 1), help="processes for the other image sizes")
    parser.add_argument("--visuals", default="auto")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.batches and not torch.cuda.is_available():
        raise ValueError(f"batches={arguments.batches}: batches of GPU physics need a CUDA device, and none is visible; leave --batches away.")
    task, workers = arguments.task, arguments.workers
    cells: list[tuple[str, int, int, str]] = [("state", 64, num, "processes") for num in workers]
    for i, size in enumerate(arguments.image_sizes):
        cells += [("image", size, num, "processes") for num in (workers if i == 0 else [arguments.at])]
    cells += [(name, size, num, "batch") for num in arguments.batches for name, size in (("state", 64), *(("image", size) for size in arguments.image_sizes))]
    table = Table("observation", "run as", "stock, steps/s", "ours, steps/s", "ratio", "range of ratios", title=f"{task}, one step a decision")
    rows = []
    for observation, size, num, kind in cells:
        name = f"image, {size} px" if observation == "image" else "state"
        console().print(f"{name}, {num} ({kind}) ...")
        if kind == "processes":
            stock = Processes(partial(StockEnv, task, observation, size), num)
            num_envs = num * arguments.envs_per_worker
            ours: Any = Ours(task, observation, size, num_envs, num_workers=num, visuals=arguments.visuals)
        else:  # in processes of their own: the physics of a process is either the CPU's or the GPU's
            stock = Processes(partial(StockBatch, task, observation, size, num))
            ours = Processes(partial(Ours, task, observation, size, num, device="cuda", visuals=arguments.visuals))
        found = compare(stock, ours, arguments.pairs, arguments.seconds)
        stock.close()
        ours.close()
        rows.append({"observation": name, kind: num, **found})
        low, high = found["ratio_range"]
        table.add_row(name, f"{num} {kind}", f"{found['stock']:.0f}", f"{found['ours']:.0f}", f"{found['ratio']:.2f}", f"{low:.2f} - {high:.2f}")
    console().print(table)
    save(arguments.output, arguments, {"rows": rows})


if __name__ == "__main__":
    main()
