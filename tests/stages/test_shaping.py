"""Potential-based shaping: one decision by hand, then the telescoping sum over everything that ends or cuts an episode."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stare_lit.stages.calculator import potential, shaping

NO, YES = torch.tensor([False]), torch.tensor([True])
ONE = torch.tensor([1])


def one(now=0.25, later=0.75, *, gamma=0.9, steps=1, terminated=NO, truncated=NO, **settings) -> float:
    phi = torch.tensor([now]), torch.tensor([later])
    return shaping(*phi, gamma=gamma, num_steps=torch.tensor([steps]), terminated=terminated, truncated=truncated, **settings).item()


def test_numbers_by_hand():
    assert one() == pytest.approx(0.9 * 0.75 - 0.25)
    assert one(steps=3) == pytest.approx(0.9**3 * 0.75 - 0.25)
    assert one(coefficient=2.0) == pytest.approx(2 * (0.9 * 0.75 - 0.25))
    assert one(terminated=YES) == pytest.approx(-0.25)
    assert one(terminated=YES, terminal="keep") == pytest.approx(0.425)
    assert one(truncated=YES) == pytest.approx(0.425)
    assert one(truncated=YES, bootstrap_truncation=False) == pytest.approx(-0.25)
    assert one(truncated=YES, bootstrap_truncation=False, terminal="keep") == pytest.approx(0.425)
    assert one(terminated=YES, truncated=YES) == pytest.approx(-0.25)
    assert one(crossed=YES) == 0.0
    assert one(crossed=NO) == pytest.approx(0.425)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.5, 1.0), st.integers(1, 8), st.sampled_from(["zero", "keep"]))
def test_truncation_as_an_end_is_treated_like_success(now, later, gamma, steps, terminal):
    """Mixing the two is the silent killer: a success that pays its potential back against a time-out that keeps it."""
    settings = {"gamma": gamma, "steps": steps, "terminal": terminal, "bootstrap_truncation": False}
    assert one(now, later, terminated=YES, **settings) == one(now, later, truncated=YES, **settings)


@st.composite
def rollouts(draw):
    """A batch of N rows over T decisions with auto-reset: rows end at different times, so every reset is a partial one."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, t, k, h = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def state():
        index = torch.randint(0, k + 1, (n, 1), generator=generator)[:, 0]
        error = torch.rand(n, generator=generator, dtype=torch.float64)
        return potential(index, error, k, mode=mode, form=form)

    mode, form = draw(st.sampled_from(["cumulative", "bare"])), draw(st.sampled_from(["sigmoid", "sigmoid_scaled", "linear"]))
    now, rows = state(), []
    for _ in range(t):
        later = state()
        terminated, truncated = torch.rand(2, n, generator=generator) < 0.2
        steps = torch.randint(1, h + 1, (n,), generator=generator)
        rows.append((now, later, steps, terminated, truncated))
        now = torch.where(terminated | truncated, state(), later)  # auto-reset of the rows that ended
    return [torch.stack(column, 1) for column in zip(*rows, strict=True)]


@settings(max_examples=100)
@given(rollouts(), st.floats(0.5, 1.0), st.floats(0.1, 3.0), st.sampled_from(["zero", "keep"]), st.booleans())
def test_telescoping_sum(columns, gamma, coefficient, terminal, bootstrap):
    """``sum_t gamma^t F_t = c (gamma^T Phi(s_T) - Phi(s_0))`` over each episode: ends, truncation, auto-reset, partial resets, chunks of varying h."""
    now, later, steps, terminated, truncated = columns
    shaped = shaping(
        now,
        later,
        gamma=gamma,
        num_steps=steps,
        terminated=terminated,
        truncated=truncated,
        coefficient=coefficient,
        terminal=terminal,
        bootstrap_truncation=bootstrap,
    )
    for row in range(now.shape[0]):
        start, clock, total = 0, 0, 0.0
        for t in range(now.shape[1]):
            total += gamma**clock * shaped[row, t].item()
            clock += int(steps[row, t])
            end, cut = bool(terminated[row, t]), bool(truncated[row, t])
            if end or cut or t == now.shape[1] - 1:
                zeroed = terminal == "zero" and (end or (cut and not bootstrap))
                last = 0.0 if zeroed else later[row, t].item()
                assert total == pytest.approx(coefficient * (gamma**clock * last - now[row, start].item()), abs=1e-9)
                start, clock, total = t + 1, 0, 0.0


@settings(max_examples=30)
@given(rollouts(), st.floats(0.5, 1.0))
def test_with_zero_terminals_an_episode_is_worth_what_it_was(columns, gamma):
    """Shaping adds the same constant, -Phi(s_0), to success and time-out alike, so it cannot change which policy is best."""
    now, later, steps, terminated, truncated = columns
    truncated[:, -1] = True
    ends = terminated | truncated
    shaped = shaping(now, later, gamma=gamma, num_steps=steps, terminated=terminated, truncated=truncated, bootstrap_truncation=False)
    for row in range(now.shape[0]):
        total, clock = 0.0, 0
        for t in range(now.shape[1]):
            total += gamma**clock * shaped[row, t].item()
            clock += int(steps[row, t])
            if ends[row, t]:
                break
        assert total == pytest.approx(-now[row, 0].item(), abs=1e-9)


def test_bad_settings_are_refused():
    phi = torch.zeros(1)
    arguments = {"num_steps": ONE, "terminated": NO, "truncated": NO}
    with pytest.raises(ValueError, match=r"gamma: 1\.5"):
        shaping(phi, phi, gamma=1.5, **arguments)
    with pytest.raises(ValueError, match="terminal: 'drop' is unknown"):
        inspect.unwrap(shaping)(phi, phi, gamma=1.0, terminal="drop", **arguments)
