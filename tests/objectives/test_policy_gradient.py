import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stare_lit.objectives.policy_gradient import (
    approx_kl,
    clip_fraction,
    clipped_surrogate_loss,
    clipped_value_loss,
    explained_variance,
    group_advantage,
)

NAN = float("nan")


def test_surrogate_by_hand():
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    out = clipped_surrogate_loss(ratio.log(), torch.zeros(5), advantage, clip_epsilon=0.2)
    assert out.loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2))
    assert out.weight.item() == 5
    assert out.metrics["clip_fraction"].item() == pytest.approx(4 / 5)


def test_surrogate_gradient_vanishes_where_clipped():
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    clipped_surrogate_loss(log_prob, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), clip_epsilon=0.2).loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 1.5, -0.5, 0.0]))


def test_equal_policies_give_minus_the_advantage():
    advantage = torch.tensor([0.5, -2.0, 1.0])
    out = clipped_surrogate_loss(torch.full((3,), -1.3), torch.full((3,), -1.3), advantage, clip_epsilon=0.2)
    assert out.loss.item() == pytest.approx(-advantage.sum().item())
    assert out.metrics["approx_kl"].item() == out.metrics["clip_fraction"].item() == 0.0


def test_value_loss_by_hand():
    value, old, target = torch.tensor([1.0, 0.1, 30.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 0.0])
    out = clipped_value_loss(value, old, target, clip_value=0.2, huber_delta=10.0)
    # clipped branch counts in the first (0.8^2/2), the plain one in the second (0.9^2/2) and in the third, linear beyond 10
    assert out.loss.item() == pytest.approx(0.32 + 0.405 + 10 * (30 - 5))
    assert out.metrics["value_clip_fraction"].item() == pytest.approx(2 / 3)
    assert clipped_value_loss(value, old, target, clip_value=None, huber_delta=10.0).loss.item() == pytest.approx(0.0 + 0.405 + 250)


def test_group_advantage_by_hand():
    # means 1/4 and 1; sample deviation of the first sqrt((9/16 + 3/16) / 3) = 1/2; all alike in the second
    found = group_advantage(torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), group_size=4)
    torch.testing.assert_close(found, torch.tensor([-0.5, 1.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0]))


@given(
    st.lists(st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4), min_size=1, max_size=4),
    st.floats(0.1, 100),
    st.floats(-5, 5),
)
def test_group_advantage_knows_no_scale_and_no_offset(groups, scale, offset):
    outcome = torch.tensor(groups, dtype=torch.float64).flatten()
    found = group_advantage(outcome, group_size=4)
    torch.testing.assert_close(found.view(-1, 4).sum(1), torch.zeros(len(groups), dtype=torch.float64), atol=1e-6, rtol=0)
    wide = outcome.view(-1, 4).std(1).repeat_interleave(4) > 1e-3  # not at the guard against division by 0
    torch.testing.assert_close(group_advantage(scale * outcome + offset, group_size=4)[wide], found[wide], atol=1e-6, rtol=1e-6)


@given(st.floats(-10, 10, width=32))
def test_a_group_that_ends_alike_teaches_nothing(outcome):
    torch.testing.assert_close(group_advantage(torch.full((8,), outcome, dtype=torch.float64), group_size=8), torch.zeros(8, dtype=torch.float64))


def test_kl_by_hand():
    assert approx_kl(torch.tensor([0.0])).item() == 0.0
    assert approx_kl(torch.tensor([math.log(2.0)])).item() == pytest.approx(2 - 1 - math.log(2))


def test_explained_variance_by_hand():
    target = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(target + 5.0, target).item() == 1.0
    assert explained_variance(torch.ones(3), target).item() == 0.0
    assert explained_variance(-target, target).item() == pytest.approx(-3.0)
    assert explained_variance(target, torch.ones(3)).item() == 0.0


@given(st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=20))
def test_kl_is_never_negative(values):
    assert approx_kl(torch.tensor(values)).item() >= -1e-6


@given(st.integers(0, 2**31))
def test_masked_entries_do_not_matter_and_get_no_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(8, generator=generator) < 0.6
    x, y, z = torch.randn(3, 8, generator=generator)
    for loss in (
        lambda a, b, c, **more: clipped_surrogate_loss(a, b, c, clip_epsilon=0.2, **more),
        lambda a, b, c, **more: clipped_value_loss(a, b, c, clip_value=0.2, huber_delta=1.0, **more),
    ):
        dirty = [torch.where(mask, t, NAN).requires_grad_() for t in (x, y, z)]
        out, expected = loss(*dirty, mask=mask), loss(x[mask], y[mask], z[mask])
        torch.testing.assert_close(out.loss, expected.loss)
        assert out.weight == expected.weight == mask.sum()
        for name in out.metrics:
            torch.testing.assert_close(out.metrics[name], expected.metrics[name], atol=1e-5, rtol=1e-4)
        out.loss.backward()
        assert (dirty[0].grad[~mask] == 0).all()
        assert dirty[0].grad.isfinite().all()


@given(st.integers(0, 2**31))
def test_micro_batches_add_up(seed):
    x, y, z = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    whole = clipped_surrogate_loss(x, y, z, clip_epsilon=0.2)
    parts = [clipped_surrogate_loss(x[s], y[s], z[s], clip_epsilon=0.2) for s in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: clipped_surrogate_loss(x, x, x, clip_epsilon=1.0), r"clip_epsilon: 1\.0"),
        (lambda x: clip_fraction(x, clip_epsilon=0.0), r"clip_epsilon: 0\.0"),
        (lambda x: clipped_value_loss(x, x, x, clip_value=0.0, huber_delta=1.0), r"clip_value: 0\.0"),
        (lambda x: clipped_value_loss(x, x, x, clip_value=None, huber_delta=-1.0), r"huber_delta: -1\.0"),
        (lambda x: group_advantage(x, group_size=1), "group_size: 1 must be at least 2"),
        (lambda x: group_advantage(x, group_size=3), "group_size: 3 .* divide the 2 episodes"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))
