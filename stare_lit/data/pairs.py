"""Who wins which stage: preference pairs between trajectories that start alike. Tensors in, indices out; no files, no policy.

Rules and settings below are this project's own ("ours") unless a paper is named; the stage-pair condition is StARe-VLA's (arXiv 2512.05107),
the best-against-worst choice GRAPE's (arXiv 2411.19309).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcomes:
    """What N trajectories did, stage by stage (N trajectories, K stages).

    Attributes:
        state: int64 [N], names the initial state; only equal ones are ever paired.
        completed: bool [N, K], stage k was brought to its end.
        decisions: int64 [N, K], decisions that the policy took inside stage k (0: never there, or passed through within one decision).
        cost: float32 [N, K], l_k, the mean error over the stage's decisions, in [0, 1]; 0 where there is none.
        total_error: float32 [N, K], the stage's error summed over environment steps (unit: steps): long and far both count.
        log_likelihood: float32 [N], log-probability of the executed tokens under the policy that acted (GRAPE's choice reads it).
    """

    state: Tensor
    completed: Tensor
    decisions: Tensor
    cost: Tensor
    total_error: Tensor
    log_likelihood: Tensor

    @property
    def success(self) -> Tensor:
        """bool [N]: the last stage was completed."""
        return self.completed[:, -1]


@dataclass(frozen=True)
class Pairs:
    """P trajectory pairs: rows ``a`` and ``b`` (int64 [P]) of the outcomes, and who is preferred in each stage.

    ``preferred`` is int64 [P, K]: +1 means a, -1 means b, 0 no stage pair. The winner may change from stage to stage.
    """

    a: Tensor
    b: Tensor
    preferred: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def select(self, mask: Tensor) -> "Pairs":
        """The pairs where ``mask`` (bool [P]) is True."""
        return Pairs(self.a[mask], self.b[mask], self.preferred[mask])


@dataclass(frozen=True)
class PairRule:
    """How pairs are chosen.

    Args:
        kind: ``stage`` = stage pairs (StA-TPO); ``success`` = one stage, success beats failure (TPO);
            ``best_worst`` = one stage, GRAPE's best against worst by ``grape_score``, with no demand on success.
        use_cost: whether two trajectories that both completed a stage are compared by their summed error. False is StA-TPO "without cost"
            (set the module's ``lmbda`` to 0 with it); the one-stage rules know no cost and want False.
        min_gap: smallest difference in summed error (environment steps, each weighing 0..1) that makes one of two completed stages the better one.
        max_pairs_per_state: at most so many trajectory pairs from one initial state, drawn at random (``best_worst``: i-th best against i-th worst).
    """

    kind: Literal["stage", "success", "best_worst"] = "stage"
    use_cost: bool = True
    min_gap: float = 0.5
    max_pairs_per_state: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("stage", "success", "best_worst"):
            raise ValueError(f"kind={self.kind!r}: use 'stage', 'success' or 'best_worst'")
        if self.kind != "stage" and self.use_cost:
            raise ValueError(f"use_cost=True with kind={self.kind!r}: a one-stage rule has no stage cost; set use_cost to false (or kind to 'stage')")
        if self.min_gap < 0:
            raise ValueError(f"min_gap={self.min_gap}: must not be negative (0 lets any difference decide)")
        if self.max_pairs_per_state < 1:
            raise ValueError(f"max_pairs_per_state={self.max_pairs_per_state}: at least 1")


def build_pairs(outcomes: Outcomes, rule: PairRule, *, seed: int = 0) -> Pairs:
    """The pairs of a set of trajectories under ``rule``, ordered by initial state; trajectory pairs without a stage pair are dropped.

    The one-stage rules return K = 1. ``seed`` decides which pairs are kept where a state has more than ``max_pairs_per_state``.
    """
    generator = torch.Generator().manual_seed(seed)
    num_stages = outcomes.completed.shape[1] if rule.kind == "stage" else 1
    empty = torch.empty(0, dtype=torch.long)
    chosen = [Pairs(empty, empty, torch.empty(0, num_stages, dtype=torch.long))]
    compared = outcomes if rule.kind == "stage" else whole_trajectory(outcomes)
    for rows in _by_state(outcomes.state):
        if rule.kind == "best_worst":
            chosen.append(_best_against_worst(outcomes, rows, rule.max_pairs_per_state))
        else:
            chosen.append(_all_pairs(compared, rows, rule, generator))
    return Pairs(torch.cat([p.a for p in chosen]), torch.cat([p.b for p in chosen]), torch.cat([p.preferred for p in chosen]))


def stage_preference(outcomes: Outcomes, a: Tensor, b: Tensor, *, use_cost: bool, min_gap: float) -> Tensor:
    """Who wins each stage of the trajectory pairs (a, b).

    A stage pair exists only if the stage before was completed in both (paper) and both took a decision in this one. Completed beats not
    completed; both completed: the lower summed error wins if it is lower by at least ``min_gap`` (> 0) and ``use_cost``; neither: no pair.

    Args:
        outcomes: N trajectories, K stages.
        a, b: int64 [P] rows of ``outcomes``.
        use_cost: False makes no pair where both completed.
        min_gap: environment steps, see ``PairRule``.

    Returns:
        int64 [P, K]: +1 a, -1 b, 0 no pair.
    """
    done_a, done_b = outcomes.completed[a], outcomes.completed[b]
    before = torch.ones_like(done_a)
    before[:, 1:] = (done_a & done_b)[:, :-1]
    exists = before & (outcomes.decisions[a] > 0) & (outcomes.decisions[b] > 0)
    preferred = done_a.long() - done_b.long()
    if use_cost:
        gap = outcomes.total_error[b] - outcomes.total_error[a]
        clear = (gap.abs() >= min_gap) & (gap != 0)
        preferred = torch.where(done_a & done_b & clear, gap.sign().long(), preferred)
    return torch.where(exists, preferred, 0)


def whole_trajectory(outcomes: Outcomes) -> Outcomes:
    """The same trajectories seen as one stage without cost, which ends with success (K = 1): what plain TPO compares."""
    return replace(
        outcomes,
        completed=outcomes.success[:, None],
        decisions=outcomes.decisions.sum(1, keepdim=True),
        cost=torch.zeros_like(outcomes.cost[:, :1]),
        total_error=torch.zeros_like(outcomes.total_error[:, :1]),
    )


def grape_score(log_likelihood: Tensor, costs: Tensor, success: Tensor) -> Tensor:
    """GRAPE's trajectory score, 0.01 log pi(tau) + 0.01 prod_k exp(-cost_k) + 2 success (arXiv 2411.19309), the product over stages.

    Args:
        log_likelihood: [N] of the whole trajectory under the policy that acted.
        costs: [N, K] stage costs.
        success: bool [N].

    Returns:
        [N].
    """
    return 0.01 * log_likelihood + 0.01 * torch.exp(-costs.sum(1)) + 2.0 * success


def _by_state(state: Tensor) -> list[Tensor]:
    """Row indices of each initial state, states in ascending order."""
    order = torch.argsort(state, stable=True)
    _, sizes = torch.unique_consecutive(state[order], return_counts=True)
    return list(order.split(sizes.tolist()))


def _all_pairs(outcomes: Outcomes, rows: Tensor, rule: PairRule, generator: torch.Generator) -> Pairs:
    """Every pair of ``rows`` with a stage pair, thinned out at random to the rule's number."""
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    a, b = rows[first], rows[second]
    preferred = stage_preference(outcomes, a, b, use_cost=rule.use_cost, min_gap=rule.min_gap)
    useful = preferred.ne(0).any(1).nonzero().squeeze(1)
    if len(useful) > rule.max_pairs_per_state:
        kept = torch.randperm(len(useful), generator=generator)[: rule.max_pairs_per_state]
        useful = useful[kept.sort().values]
    return Pairs(a[useful], b[useful], preferred[useful])


def _best_against_worst(outcomes: Outcomes, rows: Tensor, most: int) -> Pairs:
    """The i-th best of ``rows`` against the i-th worst, i < ``most``, no trajectory twice; equal scores make no pair."""
    score = grape_score(outcomes.log_likelihood[rows], outcomes.cost[rows], outcomes.success[rows])
    ranked = torch.argsort(score, descending=True, stable=True)
    number = min(most, len(rows) // 2)
    best, worst = ranked[:number], ranked.flip(0)[:number]
    differs = score[best] > score[worst]
    best, worst = rows[best[differs]], rows[worst[differs]]
    return Pairs(best, worst, torch.ones(len(best), 1, dtype=torch.long))
