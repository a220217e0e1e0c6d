"""Imitation: cross entropy of action tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stare_lit.types import LossOutput

_IGNORED = -100


def action_token_cross_entropy(
    logits: Float[Tensor, "*B H A V"],
    targets: Int[Tensor, "*B H A"],
    *,
    action_is_pad: Bool[Tensor, "*B H"],
    sample_weight: Float[Tensor, "*B"] | None = None,
) -> LossOutput:
    """``L = sum_{b,h,a} w_b (1 - pad_{b,h}) (-log softmax(logits)_{targets})`` (paper: SFT of the imitation phase).

    A chunk has H steps of A tokens over V classes: the action bins, or the whole vocabulary as OpenVLA (peer) does. ``action_is_pad`` is
    True where padded (upstream's sense); targets there may hold anything. ``sample_weight`` weights whole samples (ours; default 1).
    Computed in float32. ``weight`` is ``sum w_b`` over the tokens that count; ``metrics``: ``token_accuracy`` (weighted likewise).

    Raises ``ValueError`` where a target that counts lies outside [0, V) (on the CPU; a device is not synchronised for it).
    """
    num_classes = logits.shape[-1]
    kept = ~action_is_pad.unsqueeze(-1).expand(targets.shape)
    if targets.device.type == "cpu" and bool((kept & ((targets < 0) | (targets >= num_classes))).any()):
        raise ValueError(f"targets: token ids {targets[kept].min()}..{targets[kept].max()} do not fit {num_classes} classes; check num_bins and the dataset")
    labels = torch.where(kept, targets, _IGNORED)
    nll = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=_IGNORED, reduction="none").view_as(targets)
    weight = kept.to(nll.dtype)
    if sample_weight is not None:
        weight = weight * sample_weight.to(nll.dtype)[..., None, None]
    total = weight.sum()
    hits = (logits.detach().argmax(-1) == targets).to(nll.dtype)
    accuracy = (hits * weight).sum() / total.clamp_min(torch.finfo(nll.dtype).tiny)
    return LossOutput((nll * weight).sum(), total, {"token_accuracy": accuracy.detach()})
