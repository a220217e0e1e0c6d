"""Schedules, parameter groups and the checks of settings that the phases share."""

import pytest
import torch

from stare_lit.algorithms.optim import require_positive, require_share, split_value_head, warmup_schedule


def rates(total_steps, **settings) -> list[float]:
    """Learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_schedule(optimizer, total_steps=total_steps, **settings)
    seen = []
    for _ in range(10):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_constant_rises_linearly_and_stays():
    assert rates(None, warmup_steps=4, schedule="constant") == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)


def test_cosine_ends_at_5_percent():
    seen = rates(8, warmup_steps=0, schedule="cosine")
    assert seen[0] == pytest.approx(1.0)
    assert seen[4] == pytest.approx(0.05 + 0.95 / 2)
    assert seen[8:] == pytest.approx([0.05, 0.05])
    assert all(before >= after for before, after in zip(seen, seen[1:], strict=False))


def test_cosine_needs_an_end():
    with pytest.raises(ValueError, match="needs to know its end"):
        rates(None, warmup_steps=0, schedule="cosine")


def test_frozen_parameters_are_in_neither_group():
    policy = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 2), "frozen": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
    policy.value_head = policy["head"]
    policy["frozen"].requires_grad_(False)
    trunk, head = split_value_head(policy)
    assert {id(p) for p in trunk} == {id(p) for p in policy["trunk"].parameters()}
    assert {id(p) for p in head} == {id(p) for p in policy["head"].parameters()}


def test_settings_are_named_in_errors():
    require_positive(a=1e-9)
    require_share(a=0.0, b=1.0)
    with pytest.raises(ValueError, match="learning_rate=0.0: must be above 0"):
        require_positive(learning_rate=0.0)
    with pytest.raises(ValueError, match=r"lmbda=1.5: must lie in \[0, 1\]"):
        require_share(lmbda=1.5)
