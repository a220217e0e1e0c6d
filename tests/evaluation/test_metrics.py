"""Intervals against published numbers, the funnel by hand."""

import math

import pytest
import torch

from stare_lit.evaluation.metrics import paired_gain, stage_funnel, stage_reached, wilson_rate


def test_wilson_against_newcombe_1998_table_1():
    rate = wilson_rate(81, 263)
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=5e-5)


def test_wilson_at_the_edges():
    assert wilson_rate(0, 20).low == 0
    assert wilson_rate(20, 20).high == 1
    assert wilson_rate(200, 200).low == pytest.approx(0.9812, abs=1e-4)
    assert math.isnan(wilson_rate(0, 0).value)
    with pytest.raises(ValueError, match="successes=3 of trials=2"):
        wilson_rate(3, 2)


def outcomes(both, wins, losses, neither):
    before = [True] * both + [False] * wins + [True] * losses + [False] * neither
    after = [True] * both + [True] * wins + [False] * losses + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("table", "gain", "low", "high"),
    [((36, 12, 2, 0), 0.2000, 0.0569, 0.3404), ((54, 0, 0, 0), 0.0, -0.0664, 0.0664), ((0, 30, 0, 0), 1.0, 0.8395, 1.0)],
)
def test_paired_interval_against_newcombe_1998_table_2_method_10(table, gain, low, high):
    result = paired_gain(*outcomes(*table))
    assert (result.gain, result.low, result.high) == pytest.approx((gain, low, high), abs=1.5e-4)


def test_paired_gain_is_antisymmetric_and_counts():
    before, after = outcomes(5, 8, 1, 6)
    forward, backward = paired_gain(before, after), paired_gain(after, before)
    assert (forward.wins, forward.losses, forward.trials) == (8, 1, 20)
    assert forward.gain == pytest.approx(0.35)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    with pytest.raises(ValueError, match="same seeds"):
        paired_gain([True], [True, False])


def test_funnel_by_hand():
    done = torch.tensor([0, 1, 1, 2, 3])
    names = ["reach", "grasp", "place"]
    assert [(r.successes, r.trials) for r in stage_funnel(done, names).values()] == [(4, 5), (2, 4), (1, 2)]
    assert [r.successes for r in stage_reached(done, names).values()] == [4, 2, 1]
    assert stage_funnel(torch.tensor([0, 0]), names)["grasp"].trials == 0
