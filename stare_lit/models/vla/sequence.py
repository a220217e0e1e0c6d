"""Positions and attention of a left-padded prompt inside a sequence."""

import torch
from torch import Tensor


def positions(valid: Tensor) -> Tensor:
    """Position ids int64 [N, S] that count only valid tokens, so that padding shifts nothing; 0 on padding before the first."""
    return (valid.long().cumsum(dim=-1) - 1).clamp_min(0)


def attention_mask(valid: Tensor, num_queries: int, *, causal: bool) -> Tensor:
    """Boolean mask [N, 1, Q, S], True = attend, for the last ``num_queries`` of S positions; padding is seen by no other token.

    Every query sees itself, so that no row is empty (a padded query would otherwise give NaN).
    """
    length = valid.shape[-1]
    keys = torch.arange(length, device=valid.device)
    queries = keys[length - num_queries :, None]
    mask = valid[:, None, :] | (queries == keys)
    return (mask & (keys <= queries) if causal else mask)[:, None]
