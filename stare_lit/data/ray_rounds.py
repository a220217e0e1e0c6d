"""Rounds beyond one machine: TorchRL's Ray collector in the place of the local one. Needs the extra ``stare-lit[ray]``."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

ENDLESS = 2**62
"""TorchRL's Ray collector takes no -1."""


@dataclass(frozen=True)
class RaySettings:
    """Where a round is sampled.

    Each worker holds a copy of the policy and ``num_envs / num_collectors`` environments of its own. Weights are sent before every round. Worker w of
    W starts round r from the seed ``seed + 10007 * (r * W + w)``, environments and sampled tokens alike (with P training processes of rank p, r stands
    for ``r * P + p``): no two workers see the same episodes, and a round can be repeated, whatever came before it.

    Args:
        num_collectors: Ray actors of each training process.
        address: of a running cluster (``auto``, ``ray://host:10001``); null: Ray is started on this machine.
        cpus, gpus: that Ray sets aside for an actor.
        device: of the actors' policies.
    """

    num_collectors: int = 2
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.num_collectors < 1:
            raise ValueError(f"num_collectors={self.num_collectors}: at least 1")
        if self.device.startswith("cuda") and not self.gpus:
            raise ValueError(f"device={self.device!r} with gpus={self.gpus}: Ray hides the cards from an actor that asks for none; set gpus above 0")


class RemoteActing(nn.Module):
    """A copy of the policy as an actor calls it: samples with its value, without gradients, under the trainer's mixed precision (None: none)."""

    policy: Any

    def __init__(self, policy: nn.Module, temperature: float, mixed: torch.dtype | None) -> None:
        super().__init__()
        self.policy, self.temperature, self.mixed = policy, temperature, mixed

    def start_round(self, seed: int) -> None:
        """The tokens of the next round depend on ``seed`` alone."""
        torch.manual_seed(seed)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.policy.eval()
        device = next(self.policy.parameters()).device
        with torch.autocast(device.type, self.mixed, enabled=self.mixed is not None):
            return self.policy.act(tensordict, temperature=self.temperature, value=True)


class RayRounds:
    """Rounds [num_envs, decisions] that the actors sample.

    Args:
        settings: where.
        make_env: makes the environments of one actor.
        policy: the one that is trained, adapters and all; it is copied.
        temperature: of the sampled tokens.
        mixed: dtype of automatic mixed precision, or None.
        frames: decisions of a round, over all actors.

    Raises:
        ValueError: Ray is not installed.
    """

    def __init__(
        self, settings: RaySettings, make_env: Callable[[], EnvBase], policy: nn.Module, *, temperature: float, mixed: torch.dtype | None, frames: int
    ) -> None:
        if find_spec("ray") is None:
            raise ValueError("ray: is not installed; pip install 'stare-lit[ray]', or leave data.ray out to sample on this machine")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from torchrl.collectors.distributed import RayCollector

        self._settings, self._acting = settings, RemoteActing(copy.deepcopy(policy).cpu(), temperature, mixed)
        local = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
        self._collector = RayCollector(
            [make_env] * settings.num_collectors,
            self._acting,
            frames_per_batch=frames,
            total_frames=ENDLESS,
            policy_device=settings.device,
            reset_at_each_iter=True,
            trust_policy=True,
            sync=True,
            collector_class="single",
            collector_kwargs=[{"auto_register_policy_transforms": False} for _ in range(settings.num_collectors)],
            ray_init_config=local if settings.address is None else {"address": settings.address, "logging_level": "warning"},
            remote_configs={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        )
        self._rounds: Any = None

    def next(self, policy: nn.Module, seeds: list[int]) -> TensorDict:
        """The next round by the weights of ``policy``, actor w from ``seeds[w]``."""
        self._acting.policy.load_state_dict(policy.state_dict())
        self._collector.update_policy_weights_(TensorDict.from_module(self._acting).data)
        arguments = [(seed,) for seed in seeds]
        self._collector.map_fn("set_seed", arguments)
        self._collector.map_fn("policy.start_round", arguments)
        if self._rounds is None:
            self._rounds = self._collector.iterator()
        return next(self._rounds).flatten(0, 1)

    def shutdown(self) -> None:
        """Stops the actors, and Ray where it was started here."""
        self._collector.shutdown()
