"""Interaction: the clipped losses of PPO (arXiv 1707.06347; settings peer, RL4VLA arXiv 2505.19789) and what to watch beside them.

One entry is one *decision*: its log-probability is already summed over the tokens of the executed steps. All tensors share a shape ``[*B]``
(no trailing axis). Held in parity with TorchRL's ``ClipPPOLoss`` by the tests. Advantages come from TorchRL's
``torchrl.objectives.value.functional.generalized_advantage_estimate`` with a tensor ``gamma ** num_steps`` for chunks.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stare_lit.objectives.reduction import Mask, count, keep, masked_mean
from stare_lit.types import LossOutput


def clipped_surrogate_loss(
    log_prob: Float[Tensor, "*B"],
    old_log_prob: Float[Tensor, "*B"],
    advantage: Float[Tensor, "*B"],
    *,
    clip_epsilon: float,
    mask: Mask = None,
) -> LossOutput:
    """``L = -sum_i min(r_i A_i, clip(r_i, 1 - eps, 1 + eps) A_i)``, ``r = exp(log pi - log pi_old)`` (PPO, eq. 7; a sum, not a mean).

    ``weight`` is the number of decisions that count (``mask`` True = keep). ``metrics``: ``approx_kl``, ``clip_fraction``.
    Raises ``ValueError`` for clip_epsilon outside (0, 1).
    """
    low, high = _log_bounds(clip_epsilon)
    log_ratio, advantage = keep(log_prob - old_log_prob, mask), keep(advantage, mask)
    gain = torch.minimum(log_ratio.exp() * advantage, log_ratio.clamp(low, high).exp() * advantage)
    metrics = {"approx_kl": approx_kl(log_ratio, mask), "clip_fraction": clip_fraction(log_ratio, clip_epsilon=clip_epsilon, mask=mask)}
    return LossOutput(-gain.sum(), count(gain, mask), metrics)


def clipped_value_loss(
    value: Float[Tensor, "*B"],
    old_value: Float[Tensor, "*B"],
    target: Float[Tensor, "*B"],
    *,
    clip_value: float | None,
    huber_delta: float,
    mask: Mask = None,
) -> LossOutput:
    """``L = sum_i max(huber(V_i - G_i), huber(V_old_i + clip(V_i - V_old_i, -c, c) - G_i))`` (peer, RL4VLA: c = 0.2, delta = 10).

    ``huber(e) = e^2 / 2`` up to ``|e| = delta``, linear beyond. ``clip_value=None`` leaves the clipped branch out.
    ``metrics``: ``value_clip_fraction``, ``explained_variance`` of ``target`` by ``value``.
    Raises ``ValueError`` where clip_value or huber_delta is not positive.
    """
    if clip_value is not None and clip_value <= 0:
        raise ValueError(f"clip_value: {clip_value} must be positive, or null for no clipping")
    if huber_delta <= 0:
        raise ValueError(f"huber_delta: {huber_delta} must be positive (10 is nearly a squared error)")
    value, old_value, target = keep(value, mask), keep(old_value, mask), keep(target, mask)
    loss = F.huber_loss(value, target, reduction="none", delta=huber_delta)
    clipped = torch.zeros_like(loss)
    if clip_value is not None:
        change = value - old_value
        near = old_value + change.clamp(-clip_value, clip_value)
        loss = torch.maximum(loss, F.huber_loss(near, target, reduction="none", delta=huber_delta))
        clipped = (change.detach().abs() > clip_value).to(loss.dtype)
    metrics = {"value_clip_fraction": masked_mean(clipped, mask), "explained_variance": explained_variance(value, target, mask)}
    return LossOutput(loss.sum(), count(loss, mask), metrics)


@torch.no_grad()
def group_advantage(outcome: Float[Tensor, "N"], *, group_size: int, eps: float = 1e-6) -> Float[Tensor, "N"]:
    """``A_i = (R_i - mean(R)) / max(std(R), eps)`` over the group of episode i (GRPO, arXiv 2402.03300, section 4.1.2; peer, RL4VLA arXiv 2505.19789).

    Every decision of an episode has the advantage of its episode. ``outcome`` is the return of whole episodes (success, 0 or 1); each ``group_size``
    entries that follow each other are a group of episodes from one initial state. ``std`` is the sample's (n - 1), as in TorchRL's ``MCAdvantage``.
    The advantages of a group add up to 0; a group whose episodes all end alike teaches nothing: 0.
    Raises ``ValueError`` for groups of fewer than 2 and for entries that do not divide into groups.
    """
    if group_size < 2 or len(outcome) % group_size:
        raise ValueError(f"group_size: {group_size} must be at least 2 and divide the {len(outcome)} episodes")
    groups = outcome.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / groups.std(1, keepdim=True).clamp_min(eps)).view(-1)


@torch.no_grad()
def approx_kl(log_ratio: Float[Tensor, "*B"], mask: Mask = None) -> Float[Tensor, ""]:
    """``mean(exp(x) - 1 - x)``, ``x = log pi - log pi_old``: the k3 estimate of KL(pi_old || pi), never negative (Schulman, "Approximating KL divergence")."""
    return masked_mean(torch.expm1(log_ratio) - log_ratio, mask)


@torch.no_grad()
def clip_fraction(log_ratio: Float[Tensor, "*B"], *, clip_epsilon: float, mask: Mask = None) -> Float[Tensor, ""]:
    """Share of decisions whose ratio lies outside [1 - eps, 1 + eps]."""
    low, high = _log_bounds(clip_epsilon)
    return masked_mean(((log_ratio < low) | (log_ratio > high)).to(log_ratio.dtype), mask)


@torch.no_grad()
def explained_variance(value: Float[Tensor, "*B"], target: Float[Tensor, "*B"], mask: Mask = None) -> Float[Tensor, ""]:
    """``1 - Var(G - V) / Var(G)``: 1 is a perfect critic, 0 no better than a constant, negative worse; 0 where G does not vary."""
    residual, total = _variance(target - value, mask), _variance(target, mask)
    return torch.where(total > 0, 1.0 - residual / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(total))


def _variance(x: Float[Tensor, "*B"], mask: Mask) -> Float[Tensor, ""]:
    return masked_mean((keep(x, mask) - masked_mean(x, mask)).square(), mask)


def _log_bounds(clip_epsilon: float) -> tuple[float, float]:
    if not 0.0 < clip_epsilon < 1.0:
        raise ValueError(f"clip_epsilon: {clip_epsilon} must lie in (0, 1)")
    return math.log1p(-clip_epsilon), math.log1p(clip_epsilon)
