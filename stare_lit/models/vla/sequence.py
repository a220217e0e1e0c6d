"""Pure tensor parts of decoding: positions and attention around a left-padded prompt, sampling."""

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


def extend(valid: Tensor | None, length: int) -> Tensor | None:
    """``valid`` [N, S] with ``length`` more positions that count; None, all count, stays None."""
    return None if valid is None else torch.cat([valid, valid.new_ones(len(valid), length)], dim=1)


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Window logits [N, L, num_bins] -> tokens int64 [N, L] and their log-probabilities [N, L]; temperature 0 is greedy."""
    log_probs = (logits / temperature if temperature > 0 else logits).log_softmax(dim=-1)
    if temperature > 0:
        tokens = torch.multinomial(log_probs.exp().flatten(0, 1), 1, generator=generator).view(log_probs.shape[:-1])
    else:
        tokens = log_probs.argmax(dim=-1)
    return tokens, log_probs.gather(-1, tokens[..., None]).squeeze(-1)
