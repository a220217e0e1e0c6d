"""Who acts in a round: the policy that is trained, or a frozen copy in a thread of its own, which samples the next round while this one is learnt from."""

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn

from stare_lit import keys

WRITTEN = (keys.VLA_ACTION, keys.INSTRUCTION_TOKENS, keys.STATE_VALUE)
"""What a policy writes into a decision."""


class Stopped(Exception):
    """Raised in the thread that samples, at its next decision, once ``Ahead.stop`` was called."""


class Ahead:
    """A frozen policy and at most one round that is being sampled with it. The simulators are other processes, the learner is another thread.

    Only what is trained is copied from the learner (``freeze``), and only that is in ``state_dict``: a run that goes on samples the round that was
    pending at its checkpoint again, with the same weights.

    Args:
        policy: the one that is trained, adapters and all; it is copied once.
        state: ``state_dict`` of a run that was stopped; without, ``freeze`` says by which weights to act.
    """

    def __init__(self, policy: nn.Module, state: dict[str, Any] | None = None) -> None:
        self.policy = copy.deepcopy(policy).eval()
        trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self._weights = {name: parameter.requires_grad_(False) for name, parameter in self.policy.named_parameters() if name in trained}
        self.learnt = 0
        """Rounds that the frozen weights have learnt from."""
        self._pending: Future | None = None
        self._stopped = threading.Event()
        # half of the threads: the learner is at work meanwhile
        self._executor = ThreadPoolExecutor(1, "rollouts", torch.set_num_threads, (max(1, torch.get_num_threads() // 2),))
        if state is not None:
            if state["weights"].keys() != self._weights.keys():
                raise ValueError("ckpt_path: the checkpoint's pending round was sampled by a policy with other trained weights; use the same lora settings")
            self._copy(state["weights"])
            self.learnt = state["learnt"]

    @torch.no_grad()
    def _copy(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])

    def freeze(self, policy: nn.Module, learnt: int) -> None:
        """From now on act by the present weights of ``policy``, which has learnt from ``learnt`` rounds. No round may be pending."""
        assert self._pending is None
        self._copy(dict(policy.named_parameters()))
        self.learnt = learnt

    def start(self, sample: Callable[[], Any]) -> None:
        """Begin to sample in the thread."""
        assert self._pending is None
        self._pending = self._executor.submit(sample)

    def result(self, sample: Callable[[], Any]) -> Any:
        """What the pending call returned, or raises what it raised; where none is pending, ``sample`` is called for it."""
        if self._pending is None:
            self.start(sample)
        pending, self._pending = self._pending, None
        assert pending is not None
        return pending.result()

    def check(self) -> None:
        """Called before every decision of the thread."""
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """End the thread at its next decision, and wait for that."""
        self._stopped.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """The weights that the next round is sampled with."""
        return {"learnt": self.learnt, "weights": {name: weight.detach() for name, weight in self._weights.items()}}


class Acting(nn.Module):
    """The policy as a collector calls it: samples with its value, without gradients, and keeps the time that takes."""

    def __init__(self, module: Any, temperature: float) -> None:
        super().__init__()
        self._module, self._temperature = [module], temperature  # in a list: not a child, a collector must not copy or move it
        self._generator = torch.Generator()
        self.ahead: Ahead | None = None
        self.seconds = 0.0

    def start_round(self, seed: int) -> None:
        """The tokens of the next round depend on ``seed`` alone."""
        # a generator of its own: another thread may be drawing from the global one
        self._generator = torch.Generator(self._module[0].trainer.strategy.root_device).manual_seed(seed)
        self.seconds = 0.0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        module, started = self._module[0], time.perf_counter()
        if self.ahead is not None:
            self.ahead.check()
        policy = module.policy if self.ahead is None else self.ahead.policy
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            acted = policy.act(tensordict.to(self._generator.device), temperature=self._temperature, value=True, generator=self._generator)
        if acted is not tensordict:
            tensordict.update(acted.select(*WRITTEN).to(tensordict.device))
        self.seconds += time.perf_counter() - started
        return tensordict
