import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stare_lit.stages.calculator import phi, potential, stage_completed, stage_cost, stage_error, whole_task_error
from stare_lit.stages.predicates import Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

SPEC = StageSpec(
    "Task-v0",
    (
        Stage("reach", ends=Below("tcp", 0.02), error=(ErrorTerm("tcp", scale=0.2),)),
        Stage("push", ends=Flag("success"), error=(ErrorTerm("goal", scale=0.4), ErrorTerm.not_("held"))),
    ),
    whole_task=(ErrorTerm("tcp", scale=0.2), ErrorTerm("goal", scale=0.4)),
)
FORMS = ("sigmoid", "sigmoid_scaled", "linear")
MODES = ("cumulative", "bare", "reset")
errors = st.floats(0.0, 1.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def signals(tcp, goal, held, success):
    return {"tcp": torch.tensor(tcp), "goal": torch.tensor(goal), "held": torch.tensor(held), "success": torch.tensor(success)}


def test_stage_error_by_hand():
    state = signals([0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    error = stage_error(SPEC, torch.tensor([0, 1, 1, 2]), state)
    torch.testing.assert_close(error, torch.tensor([0.5, 0.75, 0.25, 0.0]))


def test_stage_error_reads_only_the_stage_at_work():
    nan = float("nan")
    state = signals([0.1, nan, nan], [nan, 0.2, nan], [nan, 1.0, nan], [0.0, 0.0, 0.0])
    torch.testing.assert_close(stage_error(SPEC, torch.tensor([0, 1, -1]), state), torch.tensor([0.5, 0.25, 0.0]))


def test_whole_task_error_by_hand():
    state = signals([0.1, 0.1], [0.4, 0.4], [0.0, 0.0], [0.0, 1.0])
    torch.testing.assert_close(whole_task_error(SPEC, state), torch.tensor([0.75, 0.0]))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("sigmoid", [sigmoid(1.0), sigmoid(0.5), 0.5]),  # the paper's 0.73 .. 0.5
        ("sigmoid_scaled", [1.0, (sigmoid(0.5) - 0.5) / (sigmoid(1.0) - 0.5), 0.0]),
        ("linear", [1.0, 0.5, 0.0]),
    ],
)
def test_phi_by_hand(form, expected):
    torch.testing.assert_close(phi(torch.tensor([0.0, 0.5, 1.0]), form), torch.tensor(expected))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cumulative", [0.25, 0.75, 1.0, 0.0]),
        ("bare", [0.5, 0.5, 1.0, 0.0]),
        ("reset", [0.5, 0.5, 1.0, 0.0]),
    ],
)
def test_potential_by_hand(mode, expected):
    index, error = torch.tensor([0, 1, 2, -1]), torch.tensor([0.5, 0.5, 0.0, 0.3])
    torch.testing.assert_close(potential(index, error, 2, mode=mode, form="linear"), torch.tensor(expected))


def test_bare_potential_punishes_entering_a_stage():
    """The trap itself: the paper's letter drops from 0.73 to 0.5 where a stage ends."""
    value = potential(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), 4, mode="bare", form="sigmoid")
    torch.testing.assert_close(value, torch.tensor([sigmoid(1.0), 0.5]))


@given(st.integers(1, 6), st.data(), errors, errors, st.sampled_from(FORMS))
def test_cumulative_potential_does_not_fall_at_a_boundary(num_stages, data, before, after, form):
    k = data.draw(st.integers(0, num_stages - 1))
    value = potential(torch.tensor([k, k + 1]), torch.tensor([before, after]), num_stages, mode="cumulative", form=form)
    assert value[1] >= value[0]
    assert 0.0 <= value[0] <= 1.0


@given(errors, errors, st.sampled_from(FORMS), st.sampled_from(MODES))
def test_potential_rises_as_the_error_falls(a, b, form, mode):
    low, high = min(a, b), max(a, b)
    value = potential(torch.tensor([1, 1]), torch.tensor([low, high]), 3, mode=mode, form=form)
    assert value[0] >= value[1]


def test_stage_cost_by_hand():
    error = torch.tensor([[0.2, 0.4, 0.9, 0.5], [1.0, 1.0, 0.0, 0.0]])
    index = torch.tensor([[0, 0, 1, -1], [1, 2, 2, -1]])
    torch.testing.assert_close(stage_cost(error, index, 2), torch.tensor([[0.3, 0.9], [0.0, 1.0]]))
    torch.testing.assert_close(stage_cost(error, index, 2, reduction="sum"), torch.tensor([[0.6, 0.9], [0.0, 1.0]]))


def test_dawdling_lowers_the_mean_but_not_the_sum():
    """Why completed stages are ranked by the summed error: ten more steps near the goal improve the mean."""
    short, long = torch.tensor([[0.8, 0.1]]), torch.tensor([[0.8] + [0.1] * 11])
    cost = [stage_cost(error, torch.zeros_like(error, dtype=torch.int64), 1, reduction=r).item() for r in ("mean", "sum") for error in (short, long)]
    assert cost[1] < cost[0]
    assert cost[3] > cost[2]


@given(st.integers(0, 2**31), st.sampled_from(["mean", "sum"]))
def test_cost_is_bounded_and_masked_entries_do_not_matter(seed, reduction):
    generator = torch.Generator().manual_seed(seed)
    error, index = torch.rand(3, 5, generator=generator), torch.randint(-1, 4, (3, 5), generator=generator)
    cost = stage_cost(error, index, 3, reduction=reduction)
    dirty = torch.where((index < 0) | (index >= 3), float("nan"), error)
    torch.testing.assert_close(stage_cost(dirty, index, 3, reduction=reduction), cost)
    assert reduction == "sum" or (cost <= 1.0).all()


def test_stage_completed_by_hand():
    index = torch.tensor([[0, 1, 1, -1], [0, 0, 0, 0], [0, 2, 0, 0]])
    final = torch.tensor([3, 0, 1])
    expected = [[True, True, True], [False, False, False], [True, True, False]]
    assert stage_completed(index, final, 3).tolist() == expected


def test_unknown_settings_are_refused():
    zeros, index = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="form: 'cosine' is unknown; choose from"):
        inspect.unwrap(phi)(zeros, "cosine")
    with pytest.raises(ValueError, match="mode: 'whole' is unknown"):
        inspect.unwrap(potential)(index, zeros, 2, mode="whole")
    with pytest.raises(ValueError, match="reduction: 'max' is unknown"):
        inspect.unwrap(stage_cost)(zeros[None], index[None], 2, reduction="max")
