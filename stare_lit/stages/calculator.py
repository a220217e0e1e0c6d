"""The calculator of StARe: stage error d, stage cost l_k, stage potential Phi, and the shaping that a potential gives.

Sources are marked as in docs/method.md: *paper* (arXiv 2512.05107), *peer*, *ours*. All tensors are without a trailing feature axis.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stare_lit.stages.predicates import Flag, Signals
from stare_lit.stages.spec import SUCCESS, StageSpec, weighted_mean

PotentialForm = Literal["sigmoid", "sigmoid_scaled", "linear"]
PotentialMode = Literal["cumulative", "bare", "reset"]
Terminal = Literal["zero", "keep"]
Reduction = Literal["mean", "sum"]

_SIGMOID_0, _SIGMOID_1 = 0.5, torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)).item()


def stage_error(spec: StageSpec, index: Int[Tensor, "*B"], signals: Signals) -> Float[Tensor, "*B"]:
    """``d_t = sum_i w_i clip(|x_i - target_i| / L_i, 0, 1) / sum_i w_i`` of the stage ``index`` works on, in [0, 1].

    Paper for Reach (``||x_ee - x_obj||``), ours for the other stages and for the scaling. Elementwise over ``[*B]`` (a time axis may be
    part of it). 0 where all stages are done (index K) and at padding (-1); signals of other stages are not read there, NaN included.
    """
    error = torch.zeros(index.shape, device=index.device)
    for k, stage in enumerate(spec.stages):
        error = torch.where(index == k, weighted_mean(stage.error, signals), error)
    return error


def whole_task_error(spec: StageSpec, signals: Signals) -> Float[Tensor, "*B"]:
    """Error of the K = 1 baseline (ours): mean of the normalised reach error and object-to-goal error, in [0, 1]; 0 at success.

    Its potential is ``potential(success as int64, whole_task_error, 1, mode="cumulative", form=...)``.
    """
    error = weighted_mean(spec.whole_task, signals)
    return torch.where(Flag(SUCCESS)(signals), torch.zeros_like(error), error)


def phi(error: Float[Tensor, "*B"], form: PotentialForm) -> Float[Tensor, "*B"]:
    """Progress inside a stage, decreasing in its error d in [0, 1].

    ``sigmoid``: ``sigmoid(1 - d)``, the paper's letter (its d / L is our d), which spans 0.5..0.731.
    ``sigmoid_scaled``: the same rescaled to [0, 1]. ``linear``: ``1 - d``. Both ours.
    Raises ``ValueError`` for another form.
    """
    if form == "linear":
        return 1.0 - error
    if form == "sigmoid":
        return torch.sigmoid(1.0 - error)
    if form == "sigmoid_scaled":
        return ((torch.sigmoid(1.0 - error) - _SIGMOID_0) / (_SIGMOID_1 - _SIGMOID_0)).clamp(0.0, 1.0)  # against rounding
    raise ValueError(f"form: {form!r} is unknown; choose from {get_args(PotentialForm)}")


def potential(
    index: Int[Tensor, "*B"], error: Float[Tensor, "*B"], num_stages: int, *, mode: PotentialMode = "cumulative", form: PotentialForm = "sigmoid"
) -> Float[Tensor, "*B"]:
    """``Phi(s)`` from the stage index and the stage error.

    ``cumulative`` (ours, default): ``Phi = (index + phi(d)) / K``, 1 once done; it does not fall where a stage ends.
    ``bare`` (the paper's letter): ``Phi = phi(d)``, which *drops* where a stage ends (0.73 -> about 0.5); once done ``phi(0)``.
    ``reset`` (ours): the same Phi as ``bare``; the step that crosses a boundary is left unshaped (``shaping(crossed=...)``).
    0 at padding (index -1). Raises ``ValueError`` for another mode.
    """
    inside = phi(error, form)
    if mode == "cumulative":
        value = torch.where(index >= num_stages, torch.ones_like(inside), (index + inside) / num_stages)
    elif mode in ("bare", "reset"):
        value = torch.where(index >= num_stages, phi(torch.zeros_like(error), form), inside)
    else:
        raise ValueError(f"mode: {mode!r} is unknown; choose from {get_args(PotentialMode)}")
    return torch.where(index < 0, torch.zeros_like(value), value)


def shaping(
    phi: Float[Tensor, "*B"],
    next_phi: Float[Tensor, "*B"],
    *,
    gamma: float,
    num_steps: Int[Tensor, "*B"],
    terminated: Bool[Tensor, "*B"],
    truncated: Bool[Tensor, "*B"],
    coefficient: float = 1.0,
    terminal: Terminal = "zero",
    bootstrap_truncation: bool = True,
    crossed: Bool[Tensor, "*B"] | None = None,
) -> Float[Tensor, "*B"]:
    """``F = c (gamma^h Phi' - Phi)``, the shaping of one decision (paper with h = 1; chunks of h = ``num_steps`` steps are ours).

    ``phi`` is the potential before the decision and ``next_phi`` after it, *as observed before an auto-reset*; all shapes ``[*B]``.
    Ends (ours, after Ng et al. 1999): with ``terminal="zero"`` Phi' is 0 where ``terminated``; a truncated decision keeps Phi', as its
    value is bootstrapped too, unless ``bootstrap_truncation`` is off (truncation treated as an end, as RL4VLA does): then it is 0 as
    well. ``terminal="keep"`` (the paper's letter) never zeroes it. Where both flags are set the end is a true one.
    Then ``sum_t gamma^t F_t = c (gamma^T Phi(s_T) - Phi(s_0))`` over an episode, Phi(s_T) = 0 at an end.
    ``crossed`` (mode ``reset``): F = 0 where the stage index changed, in either direction; no longer a pure potential.

    Raises ``ValueError`` for another ``terminal`` or gamma outside [0, 1].
    """
    if terminal not in get_args(Terminal):
        raise ValueError(f"terminal: {terminal!r} is unknown; choose from {get_args(Terminal)}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma: {gamma} must lie in [0, 1]")
    if terminal == "zero":
        ends = terminated if bootstrap_truncation else terminated | truncated
        next_phi = torch.where(ends, torch.zeros_like(next_phi), next_phi)
    shaped = coefficient * (gamma ** num_steps.to(phi.dtype) * next_phi - phi)
    return shaped if crossed is None else torch.where(crossed, torch.zeros_like(shaped), shaped)


def stage_cost(error: Float[Tensor, "*B T"], stage_index: Int[Tensor, "*B T"], num_stages: int, *, reduction: Reduction = "mean") -> Float[Tensor, "*B K"]:
    """``l_k(tau^(k))``: mean (paper for Reach) or sum (ours, to rank completed stages) of d_t over the steps of each stage.

    Steps with index -1 (padding) or K (done) belong to no stage. A stage without a step has cost 0.
    Raises ``ValueError`` for another reduction.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction: {reduction!r} is unknown; choose from {get_args(Reduction)}")
    member = stage_index.unsqueeze(-1) == torch.arange(num_stages, device=stage_index.device)
    total = torch.where(member, error.unsqueeze(-1), torch.zeros_like(error).unsqueeze(-1)).sum(-2)
    return total if reduction == "sum" else total / member.sum(-2).clamp_min(1)


def stage_completed(stage_index: Int[Tensor, "*B T"], final_index: Int[Tensor, "*B"], num_stages: int) -> Bool[Tensor, "*B K"]:
    """Whether each stage was ended at some time: the highest index seen, the final state's included, exceeds k (the stage funnel).

    ``stage_index`` holds the states before each decision, ``final_index`` the state after the last one.
    """
    highest = torch.maximum(stage_index.amax(-1), final_index)
    return highest.unsqueeze(-1) > torch.arange(num_stages, device=highest.device)
