"""Action bins and statistics."""

import pytest
import torch

from stare_lit.models.vla.actions import ActionCodec, ActionStatistics


def codec(num_bins=32, **kwargs):
    result = ActionCodec(3, num_bins)
    result.set(ActionStatistics(**{"q01": (-0.1, 0.3, 0.0), "q99": (0.3, 0.3, 1.0), "mask": (True, True, False), **kwargs}))
    return result


def test_decode_by_hand():
    # 4 edges -1, -1/3, 1/3, 1: centres -2/3, 0, 2/3; higher ids mean lower values, ids 0 and 1 share the highest
    bins = ActionCodec(1, 4)
    torch.testing.assert_close(bins.decode(torch.tensor([[3], [2], [1], [0]])).flatten(), torch.tensor([-2 / 3, 0.0, 2 / 3, 2 / 3]))
    bins.set(ActionStatistics((0.0,), (3.0,), (True,)))
    torch.testing.assert_close(bins.decode(torch.tensor([[3], [2], [1]])).flatten(), torch.tensor([0.5, 1.5, 2.5]))


def test_mask_false_passes_through_and_constant_is_exact():
    bins = codec()
    values = bins.decode(torch.randint(0, 32, (50, 3)))
    assert (values[:, 1] == torch.tensor(0.3)).all()
    assert values[:, 0].min() >= -0.1 and values[:, 0].max() <= 0.3
    assert values[:, 2].min() < -0.5  # not squeezed into [q01, q99]
    assert bins.active_dims == (0, 2)


def test_round_trip_is_within_half_a_bin():
    bins = codec()
    actions = torch.rand(100, 3) * torch.tensor([0.4, 0.0, 2.0]) + torch.tensor([-0.1, 0.3, -1.0])
    error = (bins.decode(bins.encode(actions)) - actions).abs().max(0).values
    assert (error <= torch.tensor([0.4, 1e-6, 2.0]) / 31 / 2 + 1e-6).all()
    tokens = bins.encode(actions)
    assert torch.equal(bins.encode(bins.decode(tokens)), tokens)


def test_statistics_survive_a_change_of_dtype_and_a_state_dict():
    bins = codec(q01=(-0.123456789012345, 0.3, 0.0)).to(torch.bfloat16)
    assert bins.q01.dtype == torch.float64 and bins.statistics.q01[0] == -0.123456789012345
    other = ActionCodec(3, 32)
    assert other.active_dims == (0, 1, 2)
    other.load_state_dict(bins.state_dict())
    assert other.statistics == bins.statistics and other.active_dims == (0, 2)


def test_from_actions_are_quantiles():
    actions = torch.stack([torch.arange(101.0), torch.full((101,), 2.0)], dim=1)
    statistics = ActionStatistics.from_actions(actions)
    assert statistics.q01 == (1.0, 2.0) and statistics.q99 == (99.0, 2.0) and statistics.mask == (True, True)


def test_errors():
    with pytest.raises(ValueError, match="q99"):
        ActionStatistics((0.0,), (-1.0,), (True,))
    with pytest.raises(ValueError, match="entries"):
        ActionStatistics((0.0,), (1.0, 2.0), (True,))
    with pytest.raises(ValueError, match="actions"):
        ActionStatistics.from_actions(torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="action dimensions"):
        ActionCodec(2, 8).set(ActionStatistics.identity(3))


def test_a_gripper_written_as_open_fraction_becomes_the_environments_and_back():
    from stare_lit.models.vla.openvla_config import with_open_fraction

    written = ActionStatistics((-0.02,) * 6 + (0.0,), (0.03,) * 6 + (1.0,), (True,) * 6 + (False,))  # as bridge_orig
    codec = ActionCodec(7, 256)
    codec.set(with_open_fraction(written))
    tokens = torch.full((2, 7), 100)
    tokens[:, 6] = torch.stack([(codec.values - fraction).abs().argmin() for fraction in (0.0, 1.0)])  # what that checkpoint says for closed and open
    assert torch.allclose(codec.decode(tokens)[:, 6], torch.tensor([-1.0, 1.0]), atol=0.02)
    assert torch.equal(codec.encode(codec.decode(tokens))[0], tokens[0])
    assert codec.statistics.q01[:6] == written.q01[:6] and codec.statistics.mask == (True,) * 7
    with pytest.raises(ValueError, match="gripper='open_fraction': these action statistics normalise the last dimension"):
        with_open_fraction(ActionStatistics.identity(7))
