"""Preference over trajectory pairs, stage by stage: TPO (GRAPE) and StA-TPO (StARe-VLA)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stare_lit.objectives.reduction import masked_mean
from stare_lit.types import LossOutput

Reduction = Literal["mean", "sum"]


def segment_mean(
    x: Float[Tensor, "P T"], segment: Int[Tensor, "P T"], num_segments: int, *, reduction: Reduction = "mean"
) -> tuple[Float[Tensor, "P K"], Float[Tensor, "P K"]]:
    """``q_k = (1 / T_k) sum_{t : g(t) = k} x_t`` and T_k, the number of decisions in stage k (paper); ``reduction="sum"`` without 1 / T_k (peer).

    ``segment`` names the stage of each decision; values outside 0..K-1 (-1 padding, K done) count nowhere and their ``x`` does not matter.
    An empty segment gives 0. Raises ``ValueError`` for another reduction.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction: {reduction!r} is unknown; choose from {get_args(Reduction)}")
    member = segment.unsqueeze(-1) == torch.arange(num_segments, device=segment.device)
    total = torch.where(member, x.unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1)).sum(1)
    size = member.sum(1).to(x.dtype)
    return (total / size.clamp_min(1.0) if reduction == "mean" else total), size


def sta_tpo_loss(
    log_ratio_a: Float[Tensor, "P T"],
    log_ratio_b: Float[Tensor, "P S"],
    stage_a: Int[Tensor, "P T"],
    stage_b: Int[Tensor, "P S"],
    cost_a: Float[Tensor, "P K"],
    cost_b: Float[Tensor, "P K"],
    preferred: Int[Tensor, "P K"] | Bool[Tensor, "P K"],
    *,
    beta: float,
    lmbda: float,
    rpo_alpha: float = 0.0,
    reduction: Reduction = "mean",
) -> LossOutput:
    """Stage-aware trajectory preference::

        q_hat(tau^(k)) = q(tau^(k)) - lambda l_k(tau^(k))                          (paper)
        L = sum_p mean_{k : pair} -log sigmoid(beta s_pk (q_hat(a_p^(k)) - q_hat(b_p^(k))))    (paper; the mean over stage pairs is ours)
            - alpha q(w_p^(k))                                                     (w the winner; peer: RPO, arXiv 2404.19733; alpha 0 in the paper)

    ``log_ratio_*`` holds ``log pi(a_t|s_t) - log pi_ref(a_t|s_t)`` per decision, summed over the executed tokens; ``stage_*`` the stage of
    each decision (-1 or K: not counted). q is their mean over the stage (``reduction="sum"``: GRAPE's sum, peer). ``cost_*`` is l_k in
    [0, 1]. ``preferred`` is s: +1 (or True) where a wins stage k, -1 where b wins, 0 (or False) where there is no stage pair; the winner
    may change from stage to stage. The two trajectories may differ in length.

    ``weight`` is the number of trajectory pairs with at least one stage pair; others do not count. Equal log-ratios and costs give log 2.
    l_k has no parameters, so lambda acts as a margin: a pair that is clear by cost gets a *smaller* gradient.
    The preference alone is content when both sides get less likely, the loser faster; ``rpo_alpha`` holds on to the winner's actions: its term is their
    negative log-likelihood over the stage, less that of the reference, which has no gradient.
    ``metrics`` (over stage pairs): ``accuracy`` (log-ratio gap > 0), ``gap`` (winner's q minus loser's), ``chosen`` and ``rejected`` (their q).

    **TPO** is this with K = 1 and zero costs: ``stage`` 0 on every real decision, ``preferred`` [P, 1]; there is no other function for it.
    Raises ``ValueError`` for beta <= 0, lmbda < 0, rpo_alpha < 0 or another reduction.
    """
    if beta <= 0:
        raise ValueError(f"beta: {beta} must be positive (about 1 for means, 0.1 for sums)")
    if lmbda < 0:
        raise ValueError(f"lmbda: {lmbda} must not be negative; 0 leaves the stage cost out")
    if rpo_alpha < 0:
        raise ValueError(f"rpo_alpha: {rpo_alpha} must not be negative; 0 is the preference alone")
    num_stages = preferred.shape[1]
    q_a, _ = segment_mean(log_ratio_a, stage_a, num_stages, reduction=reduction)
    q_b, _ = segment_mean(log_ratio_b, stage_b, num_stages, reduction=reduction)
    sign = preferred.to(q_a.dtype)
    is_pair = sign != 0
    gap = sign * (q_a - q_b)
    cost_gap = torch.where(is_pair, sign * (cost_a - cost_b), torch.zeros_like(gap))
    chosen, rejected = torch.where(sign > 0, q_a, q_b), torch.where(sign > 0, q_b, q_a)
    stage_loss = -F.logsigmoid(beta * (gap - lmbda * cost_gap)) - rpo_alpha * chosen
    num_pairs = is_pair.sum(-1).to(stage_loss.dtype)
    pair_loss = torch.where(is_pair, stage_loss, torch.zeros_like(stage_loss)).sum(-1) / num_pairs.clamp_min(1.0)
    with torch.no_grad():
        metrics = {
            "accuracy": masked_mean((gap > 0).to(gap.dtype), is_pair),
            "gap": masked_mean(gap, is_pair),
            "chosen": masked_mean(chosen, is_pair),
            "rejected": masked_mean(rejected, is_pair),
        }
    return LossOutput(pair_loss.sum(), (num_pairs > 0).sum().to(pair_loss.dtype), metrics)
