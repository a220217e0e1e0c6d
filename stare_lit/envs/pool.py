"""Many single environments as one flat batch: several in a process, several processes, shared memory, exact seeds.

TorchRL's ``ParallelEnv`` of ``SerialEnv`` is not used for this: in 0.14 a partial reset there resets every environment of the worker and does
not say so, its parent spins on a core that the simulators need, and it builds one more simulator in the parent for its metadata.
"""

import gc
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.multiprocessing as mp
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs.orphans import end_with_parent

SPECS = ("observation_spec", "full_action_spec", "full_reward_spec", "full_done_spec")
ATTRIBUTES = ("chunk_size", "action_dim", "instructions", "signal_names", "max_episode_steps", "seed_range")


Rows = dict[str, Any]  # tensors by key, nested as the TensorDict is


def _copy(found: Any, row: Rows) -> None:
    """Write the tensors of ``found`` (nested dictionaries or a TensorDict) into those of ``row``."""
    for name, value in found.items():
        if isinstance(value, Tensor):
            row[name].copy_(value)
        else:
            _copy(value, row[name])


class Worker:
    """The environments of one process, numbered from 0; writes what they return into rows of shared buffers."""

    def __init__(self, make: Callable[[], EnvBase], num_envs: int) -> None:
        self.envs = [make() for _ in range(num_envs)]
        self.rows: list[Rows] = []
        self.chunks: tuple[Tensor, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Specs and attributes of one environment."""
        env = self.envs[0]
        return {name: getattr(env, name) for name in (*SPECS, *ATTRIBUTES)}

    def attach(self, rows: TensorDictBase, chunks: Tensor) -> None:
        """Where to write results and to read actions, one row an environment."""
        self.rows = [row.to_dict() for row in rows.unbind(0)]
        self.chunks = chunks.unbind(0)

    def step(self, which: Sequence[int]) -> None:
        """One decision of each environment named."""
        for i in which:
            _copy(self.envs[i].decide(self.chunks[i]), self.rows[i])

    def reset(self, seeds: dict[int, int], exact: bool) -> None:
        """Start an episode in each environment named."""
        for i, seed in seeds.items():
            _copy(self.envs[i]._reset(None, seed=seed, exact=exact), self.rows[i])
            for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED, keys.REWARD):
                self.rows[i][key].zero_()

    def close(self) -> None:
        """Free the simulators."""
        for env in self.envs:
            env.close()


def _serve(connection: Any, make: Callable[[], EnvBase], num_envs: int) -> None:
    """A worker process: obeys (method, arguments) until it is told to close or its parent is gone."""
    end_with_parent()
    torch.set_num_threads(1)
    if hasattr(os, "SCHED_BATCH"):  # a worker that wakes must not take the core from the parent, who has the other workers to wake
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        worker = Worker(make, num_envs)
        gc.freeze()  # the simulator collects garbage at each rebuild; what exists by now never is any
        connection.send(("ok", worker.describe()))
        while True:
            method, arguments = connection.recv()
            result = getattr(worker, method)(*arguments)
            connection.send(("ok", result))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException as error:
        connection.send(("error", f"{type(error).__name__}: {error}", isinstance(error, (ValueError, RuntimeError)), traceback.format_exc()))


class EnvironmentPool(EnvBase):
    """``num_envs`` single environments with batch size ``[num_envs]``, stepped by ``num_workers`` processes (0: in this one).

    Episode seeds are drawn here, so that results do not depend on the number of processes. ``reset(seed=[...])`` takes one seed for each
    episode that starts, exactly unless ``exact=False`` (see ``ManiSkillEnv``). A ``_reset`` mask resets some rows; a ``_step`` mask lets the others
    rest: nothing is simulated for them, they stay as they are and earn nothing. A worker that dies or fails is noticed at once, one that hangs
    after ``step_timeout``: one clear error, and no process stays behind.

    Args:
        make: makes one environment with batch size ``[]`` whose ``_reset`` takes ``seed`` and ``exact``, and with ``decide`` (see ``ManiSkillEnv``); picklable.
        num_envs: environments.
        num_workers: processes; ``num_envs`` must divide over them.
        rebuild_on_seed: build every simulator anew at the first reset after ``set_seed``, so that what follows is a function of the seed to the bit.
            It takes 0.05 to 0.26 s each (a plain reset 2 ms); without, contact caches of earlier episodes may move a later one by centimetres.
        step_timeout: seconds that a worker may take for one decision or reset of its environments before it counts as hanging.
        start_timeout: the same for making them; a software renderer compiles its shaders at the first start.
    """

    def __init__(
        self, make: Callable[[], EnvBase], num_envs: int, num_workers: int, *, rebuild_on_seed: bool = True,
        step_timeout: float = 120.0, start_timeout: float = 300.0,
    ) -> None:  # fmt: skip
        if step_timeout <= 0 or start_timeout <= 0:
            raise ValueError(f"step_timeout={step_timeout}, start_timeout={start_timeout}: must be above 0 seconds.")
        if num_workers and num_envs % num_workers:
            raise ValueError(f"num_envs={num_envs} does not divide over num_workers={num_workers}; choose a multiple.")
        super().__init__(device="cpu", batch_size=[num_envs])
        self._each, self._step_timeout = num_envs // (num_workers or 1), step_timeout
        self._processes: list[Any] = []
        self._connections: list[Any] = []
        self._local: Worker | None = None
        self._fresh, self._rebuild_on_seed = True, rebuild_on_seed
        self._generator = torch.Generator().manual_seed(0)
        if num_workers == 0:
            threads = torch.get_num_threads()
            self._local = Worker(make, num_envs)
            torch.set_num_threads(threads)
            described = self._local.describe()
        else:
            context = mp.get_context("spawn")
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, make, self._each), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
            described = self._collect(range(num_workers), start_timeout)[0]
        for name, value in described.items():
            setattr(self, name, value if name in ATTRIBUTES else value.expand(num_envs, *value.shape))
        buffer = self.observation_spec.zero().update(self.full_done_spec.zero()).update(self.full_reward_spec.zero())
        self._buffer = buffer.share_memory_()
        self._chunks = self.full_action_spec.zero()[keys.ACTION_CHUNK].share_memory_()
        self._call(
            "attach", {worker: (rows, chunks) for worker, (rows, chunks) in enumerate(zip(self._split(self._buffer), self._split(self._chunks), strict=True))}
        )

    def _split(self, rows: Any) -> list[Any]:
        return [rows[start : start + self._each] for start in range(0, self.batch_size[0], self._each)]

    def _call(self, method: str, arguments: dict[int, tuple]) -> None:
        """Call ``method`` of the workers named, all at once, and wait."""
        if self._local is not None:
            for each in arguments.values():
                getattr(self._local, method)(*each)
            return
        for worker, each in arguments.items():
            try:
                self._connections[worker].send((method, each))
            except (BrokenPipeError, OSError):
                self._fail(worker, "has died")
        self._collect(arguments, self._step_timeout)

    def _collect(self, workers: Any, seconds: float) -> list[Any]:
        """The answers of ``workers``, in their order."""
        answers: dict[int, Any] = {}
        waiting: dict[Any, int] = {self._connections[worker]: worker for worker in workers}
        while waiting:
            ready: list[Any] = multiprocessing.connection.wait(list(waiting), timeout=seconds)
            if not ready:
                self._fail(next(iter(waiting.values())), f"did not answer within {seconds:g} s")
            for connection in ready:
                worker = waiting.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._fail(worker, "has died")
                if answer[0] == "error":
                    self._kill()
                    if answer[2]:  # our own message, or the simulator's: it says enough
                        raise (ValueError if answer[1].startswith("ValueError") else RuntimeError)(answer[1].split(": ", 1)[1])
                    raise RuntimeError(f"simulator worker {worker} failed:\n{answer[3]}")
                answers[worker] = answer[1]
        return [answers[worker] for worker in workers]

    def _fail(self, worker: int, what: str) -> None:
        self._processes[worker].join(1)  # a process that has just died is reaped first, else it has no exit code yet
        code = self._processes[worker].exitcode
        self._kill()
        raise RuntimeError(f"simulator worker {worker} {what} (exit code {code}); if memory ran out, lower num_envs or num_workers.")

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(5)

    def _rows_by_worker(self, mask: Tensor | None) -> dict[int, list[int]]:
        """Rows within each worker that ``mask`` names (all of them without one); workers without any are left out."""
        rows = range(self.batch_size[0]) if mask is None else mask.reshape(self.batch_size[0], -1).any(-1).nonzero().squeeze(-1).tolist()
        by_worker: dict[int, list[int]] = {}
        for row in rows:
            by_worker.setdefault(row // self._each, []).append(row % self._each)
        return by_worker

    def _set_seed(self, seed: int | None) -> None:
        """Episodes from the next full reset on are a function of ``seed`` alone."""
        self._generator = torch.Generator().manual_seed(0 if seed is None else int(seed))
        self._fresh = True

    def _reset(self, tensordict: TensorDictBase | None = None, *, seed: Sequence[int] | Tensor | None = None, exact: bool = True) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        by_worker = self._rows_by_worker(mask)
        num = sum(len(rows) for rows in by_worker.values())
        low, high = self.seed_range
        seeds = torch.randint(low, high, (num,), generator=self._generator) if seed is None else torch.as_tensor(seed, dtype=torch.int64).reshape(-1)
        if len(seeds) != num:
            raise ValueError(f"seed has {len(seeds)} entries but {num} episodes start; give one seed for each.")
        exact = exact if seed is not None else self._fresh and self._rebuild_on_seed
        self._fresh = False
        drawn = iter(seeds.tolist())
        self._call("reset", {worker: ({row: next(drawn) for row in rows}, exact) for worker, rows in by_worker.items()})
        return self._buffer.exclude(keys.REWARD).clone()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        mask = tensordict.get("_step", None)
        self._chunks.copy_(tensordict[keys.ACTION_CHUNK])
        self._call("step", {worker: (rows,) for worker, rows in self._rows_by_worker(mask).items()})
        result = self._buffer.clone()
        if mask is not None:
            resting = ~mask.reshape(self.batch_size[0])
            for key in (keys.REWARD, keys.STEP_REWARD, keys.NUM_STEPS, keys.DENSE_REWARD):
                if key in result.keys():
                    result[key][resting] = 0
        return result

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Stop the processes."""
        if self._local is not None:
            self._local.close()
            self._local = None
        self._kill()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        super().close(raise_if_closed=False)
