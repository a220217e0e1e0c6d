"""The preference phase's data: rollouts -> stage labels -> stage pairs -> flat batches of decisions."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lightning import LightningDataModule
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader

from stare_lit import keys
from stare_lit.data.batches import BatchLoader
from stare_lit.data.labels import label
from stare_lit.data.offline import RolloutSettings, collect_rollouts, rollout_folder, select_episodes
from stare_lit.data.pairs import Outcomes, PairRule, Pairs, build_pairs
from stare_lit.data.phase import fitting, simulator_only
from stare_lit.data.references import decision_keys, reference_log_probs
from stare_lit.data.trajectories import Trajectories
from stare_lit.stages.separator import PADDING
from stare_lit.stages.tasks import get_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairBatches:
    """Pairs, gathered into batches: only the decisions that a stage pair compares, of both trajectories, one after the other.

    Attributes:
        trajectories: the rollouts.
        seed: int64 [N], episode seed of each trajectory.
        start: int64 [N], first row of each trajectory.
        stage_index: int64 [N, T] of each decision.
        cost: float32 [N, K], or None where the rule knows no cost.
        reference: float32 [rows], reference log-probability of each row.
        pairs: over the N trajectories.
    """

    trajectories: Trajectories
    seed: Tensor
    start: Tensor
    stage_index: Tensor
    cost: Tensor | None
    reference: Tensor
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, chosen: Sequence[int] | Tensor) -> TensorDict:
        """The batch of P pairs that compare M decisions, a TensorDict without batch size:
        ``decisions`` [U] holds what the policy evaluates, and ``reference_log_prob``, each decision once; ``decision`` [M] says which of them it is,
        ``trajectory`` [M] is p for a of pair p and P + p for its b, ``position`` [M] numbers the decisions of a trajectory from 0, ``stage_index`` [M];
        ``preferred`` [P, K]; ``episode_seed`` [P]; ``cost`` [2, P, K] (a, b), absent where the rule knows none.
        """
        chosen = torch.as_tensor(chosen)
        both = torch.cat([self.pairs.a[chosen], self.pairs.b[chosen]])
        preferred = self.pairs.preferred[chosen]
        stage = self.stage_index[both]
        last = preferred.shape[1] - 1
        compared = preferred.ne(0).repeat(2, 1).gather(1, stage.clamp(0, last)) & (stage >= 0) & (stage <= last)
        trajectory, time = compared.nonzero(as_tuple=True)
        rows, decision = (self.start[both][trajectory] + time).unique(return_inverse=True)
        decisions = self.trajectories.rows(rows, decision_keys(self.trajectories))
        batch = {
            "decisions": decisions.set("reference_log_prob", self.reference[rows]),
            "decision": decision,
            "trajectory": trajectory,
            "position": (compared.cumsum(1) - 1)[trajectory, time],
            "stage_index": stage[trajectory, time],
            "preferred": preferred,
            keys.EPISODE_SEED: self.seed[self.pairs.a[chosen]],
        }
        if self.cost is not None:
            batch["cost"] = self.cost[both].view(2, len(chosen), -1)
        return TensorDict(batch, batch_size=[])


class PreferenceDataModule(LightningDataModule):
    """Pairs of rollouts of the policy that enters the phase. Missing rollouts are sampled, missing reference log-probabilities computed.
    Reads ``policy``, ``temperature`` and ``lmbda`` of ``trainer.lightning_module``.

    Args:
        task: environment id.
        image_size: side of the camera image in pixels; the policy's own by default.
        folder: rollouts lie below it, in one folder per task and policy.
        rollouts: which episodes are used (and sampled where absent).
        rule: how pairs are chosen.
        batch_size: trajectory pairs in a batch.
        validation_fraction: of the initial states, kept for ``val/loss`` and ``val/accuracy``; 0 keeps none. Success is measured elsewhere.
        whole_states: keep the pairs of an initial state together; a decision that several of them compare is evaluated once. Batches are less mixed.
        reference_batch_size: decisions a forward when reference log-probabilities are computed.
        num_workers: processes that read batches; 0 reads in the training process.
        seed: of the thinning-out of pairs and of their order.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int | None = None,
        folder: str = "data/rollouts",
        rollouts: RolloutSettings = RolloutSettings(),  # noqa: B008 (frozen)
        rule: PairRule = PairRule(),  # noqa: B008 (frozen)
        batch_size: int = 16,
        validation_fraction: float = 0.1,
        reference_batch_size: int = 64,
        num_workers: int = 0,
        whole_states: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= validation_fraction < 1.0:
            raise ValueError(f"validation_fraction={validation_fraction}: at least 0 and below 1")
        if batch_size < 1 or reference_batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, reference_batch_size={reference_batch_size}: at least 1 each")
        self.spec = get_spec(task)  # an unknown task is an error before any work
        self.task, self.image_size, self.folder, self.settings, self.rule = task, image_size, folder, rollouts, rule
        self.batch_size, self.validation_fraction, self.num_workers, self.seed = batch_size, validation_fraction, num_workers, seed
        self.reference_batch_size, self.whole_states = reference_batch_size, whole_states
        self.train_batches: PairBatches | None = None
        self.val_batches: PairBatches | None = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the K stages of a pair, for logs."""
        return self.spec.names if self.rule.kind == "stage" else ("task",)

    @property
    def decisions_per_batch(self) -> int | None:
        """The most decisions that one batch can hold; None before `setup`."""
        return None if self.train_batches is None else 2 * self.batch_size * self.train_batches.stage_index.shape[1]

    def prepare_data(self) -> None:
        """Samples the rollouts that are missing.

        Raises:
            ValueError: the module weighs a stage cost that these pairs do not carry.
        """
        if not fitting(self):
            return
        if not self.rule.use_cost and (lmbda := getattr(self.trainer.lightning_module, "lmbda", 0.0)):
            raise ValueError(f"rule.use_cost=False with the module's lmbda={lmbda}: there is no stage cost to weigh; set lmbda to 0, or use_cost to true")
        self._rollouts()

    def setup(self, stage: str) -> None:
        """Labels, pairs and reference log-probabilities; the policy is still the one that enters the phase."""
        if self.train_batches is not None or not fitting(self):
            return
        trajectories = self._rollouts(verify=True)
        chosen = select_episodes(trajectories, self.settings)
        wanted = [keys.SIGNALS, keys.next_(keys.SIGNALS), keys.next_(keys.NUM_STEPS), keys.next_(keys.SUCCESS), keys.LOG_PROBS, keys.EPISODE_SEED]
        outcomes, stage_index = label(self.spec, *trajectories.padded(chosen, wanted))
        if self.rule.kind != "stage":
            stage_index = torch.where((stage_index >= 0) & (stage_index < self.spec.num_stages), 0, PADDING)
        pairs = build_pairs(outcomes, self.rule, seed=self.seed)
        states = outcomes.state.unique()
        held_out = states[len(states) - math.ceil(self.validation_fraction * len(states)) :]
        validation = torch.isin(outcomes.state[pairs.a], held_out)
        log.info(self._summary(outcomes, pairs))
        if not (~validation).any():
            raise ValueError(
                f"rollouts: no preference pair in {len(chosen)} episodes from {len(states)} states ({self._summary(outcomes, pairs)}); "
                "raise num_samples, num_states or temperature, or lower rule.min_gap"
            )
        batches = PairBatches(
            trajectories=trajectories,
            seed=outcomes.state,
            start=trajectories.episodes["start"][chosen],
            stage_index=stage_index,
            cost=outcomes.cost if self.rule.use_cost else None,
            reference=self._reference(trajectories),
            pairs=pairs,
        )
        self.train_batches = replace(batches, pairs=pairs.select(~validation))
        self.val_batches = replace(batches, pairs=pairs.select(validation))

    def train_dataloader(self) -> BatchLoader:
        """Batches of pairs, shuffled by (seed, epoch), so that a resumed run sees those that it would have seen."""
        return self._loader(self.train_batches, shuffle=True)

    def val_dataloader(self) -> BatchLoader | DataLoader | list:
        """Batches of pairs from initial states that training does not see; none where nothing was kept."""
        if not fitting(self):
            return simulator_only()
        return self._loader(self.val_batches, shuffle=False) if len(self.val_batches.pairs) else []

    def test_dataloader(self) -> DataLoader:
        """No data: a test is success in the simulator."""
        return simulator_only()

    def _loader(self, batches: PairBatches, *, shuffle: bool) -> BatchLoader:
        place = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size, "num_workers": self.num_workers}
        groups = batches.seed[batches.pairs.a] if self.whole_states else None
        return BatchLoader(batches, self.batch_size, seed=self.seed, shuffle=shuffle, drop_last=False, groups=groups, **place)

    def _policy(self) -> torch.nn.Module:
        """The policy handed in through the module, on the device where it will be trained."""
        return self.trainer.lightning_module.policy.to(self.trainer.strategy.root_device)

    def _rollouts(self, *, verify: bool = False) -> Trajectories:
        policy, made = self._policy(), {"task": self.task, "image_size": self.image_size}
        return collect_rollouts(policy, rollout_folder(self.folder, self.task, policy), self.settings, verify=verify, **made)

    def _reference(self, trajectories: Trajectories) -> Tensor:
        """Computed on the first rank, read by the others."""
        trainer = self.trainer
        if not trainer.is_global_zero:
            trainer.strategy.barrier("reference")
        log_prob = reference_log_probs(
            self._policy(), trajectories, temperature=trainer.lightning_module.temperature, batch_size=self.reference_batch_size,
            precision=str(trainer.precision), context=trainer.precision_plugin.forward_context(),
        )  # fmt: skip
        if trainer.is_global_zero:
            trainer.strategy.barrier("reference")
        return log_prob

    def _summary(self, outcomes: Outcomes, pairs: Pairs) -> str:
        per_stage = ", ".join(f"{name} {count}" for name, count in zip(self.stage_names, pairs.preferred.ne(0).sum(0).tolist(), strict=True))
        return f"success {outcomes.success.float().mean():.2f}, {len(pairs)} trajectory pairs, stage pairs: {per_stage}"
