"""The interaction phase's data: rounds of decisions that the policy being trained takes in the simulator."""

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from tensordict import TensorDict
from torch.utils.data import DataLoader, IterableDataset
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.data.ahead import Acting, Ahead
from stare_lit.data.offline import evaluating
from stare_lit.data.phase import fitting, simulator_only
from stare_lit.data.ray_rounds import RayRounds, RaySettings
from stare_lit.envs.factory import TOY, check_renderer, make_env
from stare_lit.envs.robots import robot_of
from stare_lit.envs.rollout import run_episodes
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.envs.transforms import RewardConfig

ROUND_SEED_STRIDE = 10_007


class _Rounds(IterableDataset):
    """One item a round: TensorDict [N, T] of decisions, sampled when it is asked for, so by the newest weights."""

    def __init__(self, data: "RolloutDataModule") -> None:
        self.data = data

    def __iter__(self) -> Iterator[TensorDict]:
        yield self.data.collect()


class RolloutDataModule(LightningDataModule):
    """Rounds of experience from a TorchRL collector; one Lightning epoch is one round, one round one batch [num_envs, decisions].

    Every round starts from a reset seeded by the round's number, so that a run that was stopped between rounds goes on exactly (simulator
    states that are restored drift; seeded resets do not). An episode that the end of a round cuts is bootstrapped.

    Args:
        task: a ManiSkill3 task or ``Toy-v0``.
        num_envs: environments stepped together.
        num_workers: processes for CPU physics; one for each core by default.
        decisions_per_env: T, decisions of each environment in a round.
        group_size: rounds of whole episodes, each so many from one initial state (GRPO), as many as fit into ``decisions_per_env`` even if they last to
            the limit; nothing is simulated after an episode's end, where ``mask`` is False. null: rounds of T decisions, cut where they end.
        temperature: of the sampled action tokens; the learner's ratio is taken at the same.
        image_size: side of the camera image, pixels; the policy's own by default.
        terminate_on_success: end an episode at success (reward 1 once); null: unless the task's benchmark judges at the last step, or the reward
            is dense: that one is paid at every step, so an episode that ends at success is paid less for it.
        max_episode_steps: horizon; the task's own by default.
        reward: what the policy is paid.
        visuals: renderer meshes of a ManiSkill task; Toy-v0 has none, so there only auto.
        device: where the environments live.
        rebuild: build CPU simulators anew for each round (0.05 to 0.26 s each): a stopped run goes on exactly; false for short rounds of cheap steps.
        ray: sample in actors of a Ray cluster, each with its share of ``num_envs`` and seeds of its own; null: here.
        staleness: rounds that the sampling policy may lie behind the learner. 0: sample, then learn. 1: sample the next round while this one is
            learnt from, by a frozen copy of the policy (one more copy of its weights in memory); the ratio is taken to what that copy did.
        seed: of the rounds.
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 16,
        num_workers: int | None = None,
        decisions_per_env: int = 52,
        group_size: int | None = None,
        temperature: float = 1.0,
        image_size: int | None = None,
        terminate_on_success: bool | None = None,
        max_episode_steps: int | None = None,
        reward: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
        visuals: Literal["auto", "light", "exact"] = "auto",
        device: str = "cpu",
        rebuild: bool = True,
        ray: RaySettings | None = None,
        staleness: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if staleness not in (0, 1):
            raise ValueError(f"staleness={staleness}: 0 (sample, then learn) or 1; one set of environments cannot usefully be further ahead")
        if ray is not None and staleness:
            raise ValueError(f"staleness={staleness} with ray: Ray's actors are sent the newest weights before every round; leave one of the two out")
        if ray is not None and num_envs % ray.num_collectors:
            raise ValueError(f"num_envs={num_envs}: must be a multiple of ray.num_collectors={ray.num_collectors}")
        if group_size is not None and (group_size < 2 or num_envs % group_size):
            raise ValueError(f"group_size={group_size}: at least 2, and num_envs={num_envs} must be a multiple of it; or null")
        if ray is not None and group_size is not None:
            raise ValueError(f"group_size={group_size} with ray: its actors know no groups; leave one of the two out")
        check_renderer(task, visuals=visuals)
        for name, value in {"num_envs": num_envs, "decisions_per_env": decisions_per_env, "temperature": temperature}.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: must be above 0.")
        if group_size is not None and task != TOY and torch.device(device).type == "cuda":
            raise ValueError(f"group_size={group_size} with device={device!r}: scenes of a GPU batch do not start alike from equal seeds; set device to 'cpu'")
        self.task, self.num_envs, self.num_workers, self.decisions_per_env = task, num_envs, num_workers, decisions_per_env
        self.temperature, self.image_size, self.reward, self.device, self.seed = temperature, image_size, reward, device, seed
        self.ray, self.staleness, self.group_size = ray, staleness, group_size
        ends = not robot_of(task).judged_at_end and reward.mode != "dense" if terminate_on_success is None else terminate_on_success
        asked = {"image_size": image_size, "max_episode_steps": max_episode_steps, "visuals": visuals}
        self._settings = {"terminate_on_success": ends, "rebuild_on_seed": rebuild, **{name: value for name, value in asked.items() if value is not None}}
        self.seconds = {"simulate": 0.0, "policy": 0.0, "wait": 0.0}
        """Of the present round: in the simulator, in the policy, and how long the learner waited for it."""
        self.lag = 0
        """Rounds that the policy which sampled the present round lay behind the learner."""
        self.env_steps = 0
        self.round = 0
        self._env: EnvBase | None = None
        self._collector: Collector | RayRounds | None = None
        self._ahead: Ahead | None = None
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Starts the environments, once."""
        if self._env is not None or stage != "fit":
            return
        module = self.trainer.lightning_module
        if (self.staleness or self.ray is not None) and module.device_mesh is not None:
            raise ValueError(f"staleness={self.staleness}, ray={self.ray}: who samples elsewhere holds a whole policy, which does not go with sharded weights "
                             "(ModelParallelStrategy); set data.staleness to 0 and leave data.ray out")  # fmt: skip
        policy, settings = module.policy, module.policy.environment | self._settings
        make = partial(
            make_env, self.task, num_workers=self.num_workers, reward=self.reward, tokenize=policy.prompts,
            device=self.device, seed_range=SEED_RANGES["train"], **settings,
        )  # fmt: skip
        if self.ray is not None:  # started by the first round, when the policy has its adapter
            self._make_env = partial(make, num_envs=self.num_envs // self.ray.num_collectors)
            return
        self._env = make(num_envs=self.num_envs)
        self._acting = Acting(self.trainer.lightning_module, self.temperature)
        if self.group_size is not None:
            longest = math.ceil(self._env.max_episode_steps / self._env.chunk_size)
            self._waves = self.decisions_per_env // longest
            if not self._waves:
                raise ValueError(f"decisions_per_env={self.decisions_per_env}: group_size={self.group_size} takes whole episodes, of up to {longest} decisions")
            return
        collector = Collector(
            self._env,
            self._acting,
            frames_per_batch=self.num_envs * self.decisions_per_env,
            total_frames=-1,
            reset_at_each_iter=True,
            trust_policy=True,
            auto_register_policy_transforms=False,
        )
        self._collector, self._rounds = collector, iter(collector)

    def collect(self) -> TensorDict:
        """One round [num_envs, decisions_per_env] by the present policy, or with ``staleness`` by the one of a round ago."""
        started, sample = time.perf_counter(), partial(self._sample, self.round)
        policy = self.trainer.lightning_module.policy
        if self.staleness and self._ahead is None and self._restored is not None:
            self._ahead = self._acting.ahead = Ahead(policy, self._restored)
        if self.ray is not None:
            batch, seconds = self._sample_by_ray(self.ray)
        elif self._ahead is not None:
            self.lag = self.round - self._ahead.learnt
            assert 0 <= self.lag <= self.staleness, f"round {self.round} was sampled by a policy of round {self._ahead.learnt}"
            batch, seconds = self._ahead.result(sample)
        else:
            with evaluating(policy):
                batch, seconds = sample()
        self.seconds = {**seconds, "wait": time.perf_counter() - started}
        self.env_steps += int(batch[keys.next_(keys.NUM_STEPS)].sum())
        self.round += 1
        return batch

    def _sample(self, number: int) -> tuple[TensorDict, dict[str, float]]:
        """Round ``number``, and the seconds it took."""
        seed = self.seed + ROUND_SEED_STRIDE * (number * self.trainer.world_size + self.trainer.global_rank)
        started = time.perf_counter()
        self._acting.start_round(seed)
        self._env.set_seed(seed)
        batch = next(self._rounds) if self.group_size is None else self._grouped_round(seed)
        total = time.perf_counter() - started
        return batch, {"simulate": total - self._acting.seconds, "policy": self._acting.seconds}

    def _grouped_round(self, seed: int) -> TensorDict:
        """[episodes, longest of them], each ``group_size`` rows from one initial state, with ``mask``."""
        num, generator = self._waves * self.num_envs // self.group_size, torch.Generator().manual_seed(seed)
        states = torch.randint(*SEED_RANGES["train"], (num,), generator=generator)
        seeds = states.repeat_interleave(self.group_size).tolist()
        return run_episodes(self._env, self._acting, seeds, exact=self._settings["rebuild_on_seed"])

    def on_before_batch_transfer(self, batch: TensorDict, dataloader_idx: int) -> TensorDict:
        """A round is about to be learnt from (a callback may have read others): with ``staleness`` the next one begins with the present weights."""
        if self.staleness:
            trainer, policy = self.trainer, self.trainer.lightning_module.policy
            if self._ahead is None:
                self._ahead = self._acting.ahead = Ahead(policy)
            self._ahead.freeze(policy, learnt=self.round - 1)
            if trainer.max_epochs == -1 or trainer.current_epoch + 1 < trainer.max_epochs:
                self._ahead.start(partial(self._sample, self.round))
        return batch

    def _sample_by_ray(self, ray: RaySettings) -> tuple[TensorDict, dict[str, float]]:
        """The time that policies take in the actors counts as simulation."""
        trainer, module, started = self.trainer, self.trainer.lightning_module, time.perf_counter()
        if self._collector is None:
            mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))
            frames = self.num_envs * self.decisions_per_env
            self._collector = RayRounds(ray, self._make_env, module.policy, temperature=self.temperature, mixed=mixed, frames=frames)
        first = (self.round * trainer.world_size + trainer.global_rank) * ray.num_collectors
        batch = self._collector.next(module.policy, [self.seed + ROUND_SEED_STRIDE * (first + worker) for worker in range(ray.num_collectors)])
        return batch, {"simulate": time.perf_counter() - started, "policy": 0.0}

    def train_dataloader(self) -> DataLoader:
        """One batch, the round."""
        return DataLoader(_Rounds(self), batch_size=None, collate_fn=lambda batch: batch)  # the default one takes a TensorDict apart

    def val_dataloader(self) -> DataLoader | list:
        """No data: success is measured in the simulator."""
        return [] if fitting(self) else simulator_only()

    def test_dataloader(self) -> DataLoader:
        """No data either."""
        return simulator_only()

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, and the weights that a pending round is sampled with."""
        return {"round": self.round, "env_steps": self.env_steps} | ({} if self._ahead is None else {"ahead": self._ahead.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.round, self.env_steps, self._restored = state["round"], state["env_steps"], state.get("ahead")

    def on_exception(self, exception: BaseException) -> None:
        """Ends the thread that samples; a run that fails or is interrupted is not torn down."""
        if self._ahead is not None:
            self._ahead.stop()

    def teardown(self, stage: str) -> None:
        """Stops the thread and the simulators."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None
        if self._collector is not None:
            self._collector.shutdown()
        elif self._env is not None:
            self._env.close()
        self._collector = self._env = None
