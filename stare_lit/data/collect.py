"""Demonstrations: scripted experts in many processes, one folder of trajectories that does not depend on how many."""

import gc
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import binomtest
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.data.demonstrator import DemoSettings, run_expert
from stare_lit.data.trajectories import Trajectories, TrajectoryWriter
from stare_lit.envs.factory import TOY
from stare_lit.envs.orphans import end_with_parent
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.types import Expert

BLOCK_SECONDS = 900.0
"""A worker that takes longer for its 10 episodes hangs (a simulator starts and runs them in half a minute)."""

Block = tuple[range, TensorDict, TensorDict]
"""Seeds, data [rows] and episode table [E] of episodes that were run together."""


def collect_demos(
    settings: DemoSettings,
    num_episodes: int,
    *,
    out: str | Path,
    seed_range: tuple[int, int] = SEED_RANGES["train"],
    keep_failures: bool = False,
    num_workers: int | None = None,
    min_success: float = 0.5,
) -> Trajectories:
    """The ``num_episodes`` first seeds of ``seed_range`` on which the expert succeeds, as trajectories in ``out``.

    Goes on where an earlier call ended or was killed. What the folder holds depends on the settings alone, not on the number of workers
    or calls: each episode depends on its seed only, and the seeds are stored in order. An episode is stored up to and including the decision
    that reached success. Needs ``if __name__ == "__main__":`` in a calling script where ``num_workers`` > 0 (processes are spawned).

    Args:
        out: folder of trajectories; made where absent.
        keep_failures: store failed episodes too, in ``out/failures``.
        num_workers: processes; 0 runs here, None takes one for each core (0 for the toy).
        min_success: stop with an error when the 95 % Wilson interval of the success rate lies below this.

    Raises:
        ValueError: bad arguments, or a folder that holds other trajectories.
        RuntimeError: the expert fails too often, the seeds run out, or a worker died or gave no answer for `BLOCK_SECONDS`.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes}: at least 1")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers={num_workers}: give 0 (none beside this process) or more, or leave it out for one a core")
    if not 0 <= seed_range[0] < seed_range[1]:
        raise ValueError(f"seed_range={tuple(seed_range)}: needs 0 <= low < high")
    if num_workers is None:
        num_workers = 0 if settings.task == TOY else len(os.sched_getaffinity(0))
    metadata = settings.metadata(seed_range)
    with ExitStack() as stack:
        writer = stack.enter_context(TrajectoryWriter(out, metadata))
        failures = stack.enter_context(TrajectoryWriter(Path(out) / "failures", replace(metadata, kind="failures"))) if keep_failures else None
        if writer.stored.num_episodes < num_episodes:
            _collect(settings, num_episodes, seed_range, writer, failures, num_workers, min_success)
        _report(writer.stored)
        return writer.stored


def _collect(
    settings: DemoSettings,
    num_episodes: int,
    seed_range: tuple[int, int],
    writer: TrajectoryWriter,
    failures: TrajectoryWriter | None,
    num_workers: int,
    min_success: float,
) -> None:
    """Runs blocks of seeds and commits them in order until enough episodes have succeeded."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{settings.task} demonstrations", total=num_episodes, completed=writer.stored.num_episodes, rate="")
        tried_until = max([seed_range[0], *(info["seeds"][1] for info in writer.stored.infos)])
        starts = range(tried_until - (tried_until - seed_range[0]) % settings.block, seed_range[1], settings.block)
        blocks = [range(start, min(start + settings.block, seed_range[1])) for start in starts]
        for block in _run_blocks(settings, blocks, num_workers, lambda: num_episodes - writer.stored.num_episodes):
            tried, data, table = _still_needed(block, tried_until, num_episodes - writer.stored.num_episodes)
            info = {"seeds": [tried[0], tried[-1] + 1]}
            if failures is not None:
                known = torch.isin(table["seed"], failures.stored.episodes["seed"])  # of a run that was killed between the two appends
                failures.append(*_select(data, table, ~table["success"] & ~known), info=info)
            writer.append(*_select(data, table, table["success"]), info=info)
            successes, attempts = writer.stored.num_episodes, info["seeds"][1] - seed_range[0]
            progress.update(bar, completed=successes, rate=f"success {successes / attempts:.3f}")
            low, high = wilson_interval(successes, attempts)
            if high < min_success:
                raise RuntimeError(
                    f"the expert of {settings.task} succeeded on {successes} of {attempts} seeds ({low:.2f}..{high:.2f} at 95 %), below "
                    f"min_success={min_success}; lower action_noise={settings.action_noise}, or min_success"
                )
            if successes >= num_episodes:
                return
    raise RuntimeError(f"seed_range={tuple(seed_range)} is used up with {writer.stored.num_episodes} of num_episodes={num_episodes}; widen it")


def _still_needed(block: Block, first_seed: int, num: int) -> Block:
    """The block from ``first_seed`` on, up to its ``num``-th success: nothing twice, and no more episodes than were asked for."""
    seeds, data, table = block
    start = max(first_seed - seeds[0], 0)
    successes = table["success"][start:].nonzero().squeeze(-1) + start
    end = int(successes[num - 1]) + 1 if len(successes) >= num else len(seeds)
    row = torch.cat([torch.zeros(1, dtype=torch.int64), table["length"].cumsum(0)]).tolist()
    return seeds[start:end], data[row[start] : row[end]], table[start:end]


def _report(stored: Trajectories) -> None:
    successes, first = stored.num_episodes, stored.metadata.config["seed_range"][0]
    attempts = stored.infos[-1]["seeds"][1] - first
    low, high = wilson_interval(successes, attempts)
    text = f"the expert succeeded on {successes} of {attempts} seeds ({successes / attempts:.3f}, 95 % interval {low:.3f}..{high:.3f})"
    Console(soft_wrap=True, highlight=False).print(f"{successes} demonstrations of {stored.metadata.task} in {stored.folder}; {text}")


def wilson_interval(successes: int, attempts: int) -> tuple[float, float]:
    """95 % Wilson interval of a success rate."""
    interval = binomtest(successes, attempts).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def _select(data: TensorDictBase, table: TensorDictBase, chosen: torch.Tensor) -> tuple[TensorDictBase, TensorDictBase]:
    """Rows and table of the chosen episodes (bool [E])."""
    return data[chosen.repeat_interleave(table["length"])], table[chosen]


def _run_blocks(settings: DemoSettings, blocks: Iterable[range], num_workers: int, missing: Callable[[], int]) -> Iterator[Block]:
    """The blocks of seeds, run, in their order.

    Blocks lie on a fixed grid, so that a run which goes on later runs the same ones. What ran before does not matter: the simulator is built
    anew for each episode.
    ``missing()`` says how many successes are still needed, so that no more blocks are under way than may be of use.
    """
    if num_workers == 0:
        acting = settings.demonstrator()
        try:
            for seeds in blocks:
                yield seeds, *_run(settings, seeds, acting)
        finally:
            acting[0].close()
        return
    upcoming = iter(blocks)
    executor = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_start_worker)
    waiting: deque[tuple[range, Future]] = deque()
    try:
        while True:
            while len(waiting) < min(2 * num_workers, math.ceil(missing() / settings.block)) and (following := next(upcoming, None)) is not None:
                waiting.append((following, executor.submit(_run_as_arrays, settings, following)))
            if not waiting:
                return
            seeds, future = waiting.popleft()
            data, table = future.result(BLOCK_SECONDS)
            yield seeds, TensorDict(_tensors(data), [len(data[keys.ACTION])]), TensorDict(_tensors(table), [len(seeds)])
    except TimeoutError as error:
        for process in list(executor._processes.values()):  # before 3.14 an executor has no public way to end those that hang
            process.kill()
        raise RuntimeError(f"a worker process of {settings.task} gave no answer within {BLOCK_SECONDS:g} s and was ended; call again to go on") from error
    except BrokenProcessPool as error:
        raise RuntimeError(f"a worker process of {settings.task} died (out of memory?); call again to go on, with num_workers={num_workers} lowered") from error
    except (ValueError, OSError, RuntimeError) as error:
        raise type(error)(str(error)) from error  # of the worker, as ours
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread; ends with its parent, even a killed one; Ctrl-C is the parent's to answer."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run(settings: DemoSettings, seeds: range, acting: tuple[EnvBase, Expert]) -> tuple[TensorDict, TensorDict]:
    noise = {"action_noise": settings.action_noise, "gripper_noise": settings.gripper_noise, "arm_noise": settings.arm_noise}
    return run_expert(*acting, list(seeds), **noise, hold=settings.hold)


@cache
def _acting(settings: DemoSettings) -> tuple[EnvBase, Expert]:
    """In a worker, which ends with it."""
    acting = settings.demonstrator()
    gc.freeze()  # the simulator collects garbage at each rebuild, a third of an episode's time; what exists by now never is any
    return acting


def _run_as_arrays(settings: DemoSettings, seeds: range) -> tuple[dict[NestedKey, np.ndarray], ...]:
    """In a worker; arrays, for tensors would travel as open files of shared memory."""
    return tuple({name: value.numpy() for name, value in part.items(True, True)} for part in _run(settings, seeds, _acting(settings)))


def _tensors(arrays: dict[NestedKey, np.ndarray]) -> dict[NestedKey, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
