import math

import pytest
import torch

from stare_lit.objectives.imitation import action_token_cross_entropy

NONE = torch.zeros(2, 3, dtype=torch.bool)


def case(batch=2, horizon=3, dims=2, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, horizon, dims, classes, generator=generator), torch.randint(classes, (batch, horizon, dims), generator=generator)


def test_uniform_logits_give_log_num_classes():
    out = action_token_cross_entropy(torch.zeros(2, 3, 2, 5), torch.ones(2, 3, 2, dtype=torch.int64), action_is_pad=NONE)
    assert out.mean.item() == pytest.approx(math.log(5))
    assert out.weight.item() == 12


def test_numbers_by_hand():
    logits = torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, math.log(3.0)]]]])  # p = (3/4, 1/4), then (1/4, 3/4)
    targets = torch.tensor([[[0], [0]]])
    out = action_token_cross_entropy(logits, targets, action_is_pad=torch.tensor([[False, False]]))
    assert out.loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    assert out.metrics["token_accuracy"].item() == 0.5
    out = action_token_cross_entropy(logits, targets, action_is_pad=torch.tensor([[False, True]]))
    assert (out.loss.item(), out.weight.item()) == (pytest.approx(-math.log(3 / 4)), 1)
    assert out.metrics["token_accuracy"].item() == 1.0


def test_padded_entries_do_not_matter_and_get_no_gradient():
    logits, targets = case()
    pad = torch.tensor([[False, True, True], [False, False, True]])
    expected = action_token_cross_entropy(logits, targets, action_is_pad=pad)
    dirty = torch.where(pad[..., None, None], 1e4, logits).requires_grad_()
    out = action_token_cross_entropy(dirty, targets.masked_fill(pad[..., None], -7), action_is_pad=pad)
    torch.testing.assert_close(out.loss, expected.loss)
    assert out.weight == expected.weight == 6
    out.loss.backward()
    assert dirty.grad[pad].abs().max() == 0
    assert dirty.grad[~pad].abs().max() > 0


def test_everything_padded_is_zero_with_zero_gradient():
    logits, targets = case()
    logits.requires_grad_()
    out = action_token_cross_entropy(logits, targets, action_is_pad=~NONE)
    out.mean.backward()
    assert (out.loss.item(), out.weight.item(), out.mean.item()) == (0, 0, 0)
    assert logits.grad.abs().max() == 0


def test_micro_batches_add_up():
    logits, targets = case()
    pad = torch.tensor([[False, True, True], [False, False, True]])
    whole = action_token_cross_entropy(logits, targets, action_is_pad=pad)
    parts = [action_token_cross_entropy(logits[i : i + 1], targets[i : i + 1], action_is_pad=pad[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)
    assert sum(p.weight for p in parts) == whole.weight


def test_sample_weight_is_repetition():
    logits, targets = case()
    weighted = action_token_cross_entropy(logits, targets, action_is_pad=NONE, sample_weight=torch.tensor([2.0, 1.0]))
    rows = torch.tensor([0, 0, 1])
    repeated = action_token_cross_entropy(logits[rows], targets[rows], action_is_pad=NONE[rows])
    torch.testing.assert_close((weighted.loss, weighted.weight), (repeated.loss, repeated.weight))


def test_target_out_of_range_is_refused():
    logits, targets = case()
    targets[0, 0, 0] = 5
    with pytest.raises(ValueError, match="do not fit 5 classes"):
        action_token_cross_entropy(logits, targets, action_is_pad=NONE)
