"""A ``ParallelEnv`` whose parent sleeps while its workers simulate."""

import time

from torchrl.envs import ParallelEnv

POLL_SECONDS = 2e-4  # a decision of ManiSkill takes 10 ms and more
ALIVE_SECONDS = 1.0


class PatientParallelEnv(ParallelEnv):
    """``ParallelEnv`` for workers whose step takes milliseconds.

    TorchRL's parent spins on the workers' flags, which costs a core: with two workers on two cores it halves their rate. This one polls and
    sleeps, and then leaves the rest (clearing flags, the time limit) to TorchRL. A worker that died is an error, not a hang.
    """

    def _wait_for_workers(self, workers_range) -> None:  # noqa: ANN001
        flags = getattr(self, "_shm_done_flags", None)
        if self._use_buffers and flags is not None:
            pending = [self._worker_indices[i] for i in workers_range]
            looked = time.monotonic()
            while not all(flags[i] for i in pending):
                time.sleep(POLL_SECONDS)
                if time.monotonic() - looked > ALIVE_SECONDS:
                    looked = time.monotonic()
                    dead = [i for i in workers_range if not self._workers[i].is_alive() and not flags[self._worker_indices[i]]]
                    if dead:
                        raise RuntimeError(f"simulator worker {dead[0]} died (its own message stands above, if it had one); lower num_envs if memory ran out.")
        super()._wait_for_workers(workers_range)
