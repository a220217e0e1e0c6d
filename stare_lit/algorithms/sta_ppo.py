"""The interaction phase: StA-PPO (StARe-VLA, arXiv 2512.05107); plain PPO is the same module on the sparse reward, GRPO with groups for a critic."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives.value.functional import generalized_advantage_estimate

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.optim import Schedule, require_positive, require_share, split_value_head, warmup_schedule
from stare_lit.algorithms.phase import PhaseModule
from stare_lit.envs.rollout import MASK
from stare_lit.objectives.executed import sum_executed
from stare_lit.objectives.policy_gradient import clipped_surrogate_loss, clipped_value_loss, explained_variance, group_advantage
from stare_lit.objectives.reduction import masked_mean, masked_standardize


class StaPPOModule(PhaseModule):
    """Clipped policy gradient with GAE on the reward that the environment's ``StageReward`` shapes; decisions of h <= H executed steps.

    One batch is one round of experience [N, T]; it is gone through ``num_epochs`` times in minibatches (manual optimisation). The discount
    and the temperature are the data's own (``data.reward.gamma``, ``data.temperature``): one setting, one place.

    Args:
        policy: a ``types.Policy`` with a value head.
        advantage: "gae", or "group" (GRPO, a baseline): success of the whole episode, normalised over the ``data.group_size`` episodes from its initial
            state, for each of its decisions. That one takes the sparse reward and one process, and has no critic: value settings must be 0.
        lmbda: of GAE.
        clip_epsilon: of the ratio.
        clip_value: of the value's change; null for none.
        huber_delta: from which on the value's error counts linearly.
        entropy_coeff: weight of the entropy of the executed tokens.
        critic_coeff: weight of the value loss.
        num_epochs: passes over a round.
        minibatch_size: decisions in an optimizer step, of each process.
        micro_batch_size: most decisions in one forward and backward pass; their gradients add up to those of the minibatch. None never splits.
        learning_rate: of AdamW for the policy.
        value_learning_rate: of AdamW for the value head.
        schedule: of both learning rates over the rounds: ``constant``, or ``cosine`` to 5 % of them at ``trainer.max_epochs``.
        weight_decay: of AdamW.
        max_grad_norm: of all gradients together.
        target_kl: a round's passes end once the mean approximate KL of a pass exceeds it; null: never.
        value_warmup_rounds: first rounds in which only the value head learns.
        checkpointing: keep only the input of each transformer block and run it again in the backward pass: less memory, a third more time.
        lora: train a fresh adapter instead of all weights.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        advantage: Literal["gae", "group"] = "gae",
        lmbda: float = 0.95,
        clip_epsilon: float = 0.2,
        clip_value: float | None = 0.2,
        huber_delta: float = 10.0,
        entropy_coeff: float = 0.0,
        critic_coeff: float = 1.0,
        num_epochs: int = 3,
        minibatch_size: int = 160,
        micro_batch_size: int | None = None,
        learning_rate: float = 1e-4,
        value_learning_rate: float = 3e-3,
        schedule: Schedule = "constant",
        weight_decay: float = 0.0,
        max_grad_norm: float = 10.0,
        target_kl: float | None = 0.05,
        value_warmup_rounds: int = 1,
        checkpointing: bool = False,
        lora: LoraSettings | None = None,
    ) -> None:
        require_positive(
            num_epochs=num_epochs, minibatch_size=minibatch_size, learning_rate=learning_rate, value_learning_rate=value_learning_rate,
            max_grad_norm=max_grad_norm, clip_epsilon=clip_epsilon, micro_batch_size=1 if micro_batch_size is None else micro_batch_size,
        )  # fmt: skip
        require_share(lmbda=lmbda)
        if advantage not in ("gae", "group"):
            raise ValueError(f"advantage={advantage!r}: choose 'gae' or 'group'")
        if advantage == "group" and (critic_coeff or value_warmup_rounds):
            raise ValueError(
                f"advantage='group' has no critic, so critic_coeff={critic_coeff} and value_warmup_rounds={value_warmup_rounds} mean nothing; set both to 0"
            )
        super().__init__(policy, lora, train_value_head=advantage == "gae", checkpointing=checkpointing)
        self.advantage = advantage
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["policy"], logger=False)
        self.lmbda, self.clip_epsilon, self.clip_value, self.huber_delta = lmbda, clip_epsilon, clip_value, huber_delta
        self.entropy_coeff, self.critic_coeff, self.num_epochs, self.minibatch_size = entropy_coeff, critic_coeff, num_epochs, minibatch_size
        self.learning_rate, self.value_learning_rate, self.schedule, self.weight_decay = learning_rate, value_learning_rate, schedule, weight_decay
        self.micro_batch_size, self.max_grad_norm, self.target_kl, self.value_warmup_rounds = micro_batch_size, max_grad_norm, target_kl, value_warmup_rounds

    def configure_optimizers(self) -> OptimizerLRScheduler:
        policy, value = split_value_head(self.policy)
        groups = [{"params": policy, "lr": self.learning_rate}, {"params": value, "lr": self.value_learning_rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        rounds = self.trainer.max_epochs if self.schedule == "cosine" else None
        return {"optimizer": optimizer, "lr_scheduler": warmup_schedule(optimizer, warmup_steps=0, total_steps=rounds, schedule=self.schedule)}

    def prepare_data(self) -> None:
        """Checks before any work that the data's rounds are made for these advantages."""
        data = self.trainer.datamodule
        if (self.advantage == "group") != (data.group_size is not None):
            raise ValueError(f"advantage={self.advantage!r} with data.group_size={data.group_size}: groups need both ('group' and 8, say), or neither")
        if self.advantage == "group" and data.reward.mode != "sparse":
            raise ValueError(f"advantage='group' pays success alone, but data.reward.mode={data.reward.mode!r}; set it to 'sparse'")
        if self.advantage == "group" and self.trainer.world_size > 1:
            raise ValueError(f"advantage='group': takes one process, there are {self.trainer.world_size}; set trainer.devices to 1")

    # -- one round -----------------------------------------------------------------------------------------------------
    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        started = time.perf_counter()
        data, grouped = self.trainer.datamodule, self.advantage == "group"
        if grouped:
            flat = self.group_advantages(batch, group_size=data.group_size)
            advantage = flat["advantage"]
        else:
            flat = self.advantages(batch, gamma=data.reward.gamma, bootstrap_truncation=data.reward.bootstrap_truncation).reshape(-1)
            advantage = masked_standardize(flat["advantage"], total=self.total)
        only_value = self.current_epoch < self.value_warmup_rounds
        optimizer, count, stopped = self.optimizers(), 0, False
        totals: dict[str, Any] = {}
        for epoch in range(self.num_epochs):
            divergence, passes = 0.0, 0
            for rows in self._minibatches(len(flat), epoch):
                optimizer.zero_grad()
                metrics = self._backward(flat, advantage, rows, only_value)
                if only_value:
                    for parameter in optimizer.param_groups[0]["params"]:
                        parameter.grad = None
                scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of 16-mixed: gradients are divided by its scale in the step only
                limit = self.max_grad_norm * (1.0 if scaler is None else scaler.get_scale())
                self.clip_gradients(optimizer, gradient_clip_val=limit, gradient_clip_algorithm="norm")
                optimizer.step()
                divergence, passes, count = divergence + float(self.total(metrics["approx_kl"])), passes + 1, count + 1
                totals = {name: totals.get(name, 0.0) + value for name, value in metrics.items()}
            if self.target_kl is not None and divergence / passes / self.trainer.world_size > self.target_kl:  # alike in all processes
                stopped = True
                break
        self.lr_schedulers().step()
        metrics = {f"train/{name}": value / count for name, value in totals.items()}
        metrics["train/epochs"] = torch.tensor(float(epoch + 1))
        metrics["train/stopped_by_kl"] = torch.tensor(float(stopped))
        if grouped:
            metrics["train/nonzero_advantages"] = (advantage != 0).float().mean()  # of the decisions; the rest teach nothing
        else:
            metrics["train/explained_variance"] = explained_variance(flat[keys.STATE_VALUE].squeeze(-1), flat["value_target"])
            metrics["rollout/value"] = masked_mean(flat[keys.STATE_VALUE].squeeze(-1))
        self._log(batch, metrics, time.perf_counter() - started)

    def _minibatches(self, num: int, epoch: int) -> Iterator[Tensor]:
        """An order of the round's decisions that depends on round and pass alone, in steps of nearly equal size."""
        steps = max(1, round(num / self.minibatch_size))
        generator = torch.Generator().manual_seed(self.current_epoch * self.num_epochs + epoch)
        return iter(torch.randperm(num, generator=generator).tensor_split(steps))

    def _backward(self, batch: TensorDictBase, advantage: Tensor, rows: Tensor, only_value: bool) -> dict[str, Tensor]:
        """Gradients and metrics of a minibatch, of micro-batches that count by their share of decisions: however it is split, they are the same."""
        means: dict[str, Any] = {}
        parts = rows.tensor_split(math.ceil(len(rows) / (self.micro_batch_size or len(rows))))
        for number, part in enumerate(parts):
            share = len(part) / len(rows)
            with self._gradients_stay_here(number + 1 < len(parts)):
                loss, metrics = self._loss(batch[part], advantage[part], only_value)
                self.manual_backward(share * loss)
            means = {name: means.get(name, 0.0) + share * value.detach() for name, value in metrics.items()}
        return means

    def _gradients_stay_here(self, wanted: bool) -> AbstractContextManager[Any]:
        """Where ``wanted``, DDP does not average gradients over processes: once for a minibatch is enough. (Sharded ones are always reduced.)"""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if wanted and isinstance(strategy, ParallelStrategy) else nullcontext()

    def _loss(self, batch: TensorDictBase, advantage: Tensor, only_value: bool) -> tuple[Tensor, dict[str, Tensor]]:
        grouped = self.advantage == "group"
        new = self.policy.evaluate_actions(batch, temperature=self.trainer.datamodule.temperature, value=not grouped)
        num_steps = batch[keys.next_(keys.NUM_STEPS)].squeeze(-1)
        log_prob, old_log_prob = (sum_executed(source, num_steps) for source in (new["log_probs"].float(), batch[keys.LOG_PROBS]))
        entropy = sum_executed(new["entropy"].float(), num_steps).mean()
        surrogate = clipped_surrogate_loss(log_prob, old_log_prob, advantage, clip_epsilon=self.clip_epsilon)
        behaviour = self.joint_loss(surrogate) - self.entropy_coeff * entropy
        metrics = {"loss_policy": surrogate.mean, "entropy": entropy} | surrogate.metrics
        if grouped:
            return behaviour, metrics | {"loss": behaviour}
        value = clipped_value_loss(
            new[keys.STATE_VALUE].squeeze(-1).float(), batch[keys.STATE_VALUE].squeeze(-1), batch["value_target"],
            clip_value=self.clip_value, huber_delta=self.huber_delta,
        )  # fmt: skip
        loss = self.critic_coeff * self.joint_loss(value) + (0.0 if only_value else 1.0) * behaviour  # 0: every parameter has a gradient, as DDP expects
        return loss, metrics | {"loss": loss, "loss_value": value.mean}

    # -- advantages ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def advantages(self, batch: TensorDictBase, *, gamma: float, bootstrap_truncation: bool) -> TensorDictBase:
        """Writes ``advantage`` and ``value_target`` [N, T] (GAE with gamma^h of each decision's h steps; docs/method.md).

        The value of the state after a decision is that of the next row, except where the episode was cut (time limit, end of the round):
        there it is asked for anew, on the observation before the reset.
        """
        after = batch["next"]
        terminated, done = after[keys.TERMINATED], after[keys.DONE]
        if not bootstrap_truncation:
            terminated = done
        value = batch[keys.STATE_VALUE]
        next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
        asked = (done & ~terminated).squeeze(-1)
        asked[:, -1] = True  # never none: with sharded weights all processes ask together
        states = after.select(keys.OBSERVATION, keys.SIGNALS, keys.INSTRUCTION_TOKENS)[asked]
        with self.trainer.precision_plugin.forward_context():
            next_value[asked] = self.policy.value_only(states).float()
        discount = gamma ** after[keys.NUM_STEPS].to(value.dtype)
        advantage, target = generalized_advantage_estimate(discount, self.lmbda, value, next_value, after[keys.REWARD], done, terminated)
        batch["advantage"], batch["value_target"] = advantage.squeeze(-1), target.squeeze(-1)
        return batch

    def group_advantages(self, batch: TensorDictBase, *, group_size: int) -> TensorDictBase:
        """The real decisions [M] of the whole episodes ``batch`` [N, T], with the ``advantage`` of their episode: success at its end, over its group."""
        success = (batch[keys.next_(keys.SUCCESS)] & batch[keys.next_(keys.DONE)]).flatten(1).any(1)
        advantage = group_advantage(success.float(), group_size=group_size)
        return batch.set("advantage", advantage[:, None].expand(batch.batch_size))[batch[MASK]]

    # -- what is logged ------------------------------------------------------------------------------------------------
    def _log(self, batch: TensorDictBase, metrics: dict[str, Any], update_seconds: float) -> None:
        """Over all processes: episodes and steps are added up, everything else is a mean."""
        data, after = self.trainer.datamodule, batch["next"]
        done = after[keys.DONE]
        counted = (done, after[keys.SUCCESS] & done, after["sparse_reward"], after[keys.REWARD], after[keys.NUM_STEPS], torch.tensor(data.env_steps))
        episodes, successes, sparse, shaped, steps, env_steps = self.total(torch.stack([part.sum().double().to(self.device) for part in counted]))
        seconds = data.seconds | {"update": update_seconds}
        ended = episodes.clamp_min(1)
        metrics |= {
            "rollout/success": successes / ended,
            "rollout/episodes": episodes,
            "rollout/return": sparse / ended,
            "rollout/shaped_return": shaped / ended,
            "rollout/episode_length": steps / ended,
            "rollout/env_steps": env_steps,
            "rollout/staleness": data.lag,
            **{f"time/{name}": value for name, value in seconds.items()},
            "time/env_steps_per_second": steps / (seconds["wait"] + update_seconds),
        }
        self.log_dict({name: float(value) for name, value in metrics.items()}, batch_size=1, sync_dist=True)
        self.log("success", float(metrics["rollout/success"]), prog_bar=True, logger=False, batch_size=1, sync_dist=True)
