"""Noise on a demonstrator's actions."""

import pytest
import torch

from stare_lit.experts.noise import START, disturbed, jolted, random_starts, slipping

LIMIT = (0.1,) * 3 + (0.5,) * 3 + (1.0,)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_only_translations_in_the_units_of_the_robot():
    still = torch.zeros(2000, 7)
    found = disturbed(still, 0.3, generators(*range(2000)), LIMIT)
    assert (found[:, 3:] == 0).all() and (still == 0).all()
    assert abs(float(found[:, :3].std()) - 0.03) < 0.001


def test_each_row_by_its_own_generator_and_within_the_limits():
    action = torch.full((2, 7), 0.09)
    both, second = disturbed(action, 1.0, generators(4, 5), LIMIT), disturbed(action[:1], 1.0, generators(5), LIMIT)
    assert torch.equal(both[1], second[0]) and not torch.equal(both[0], both[1])
    assert (both.abs() <= torch.tensor(LIMIT)).all()
    assert torch.equal(disturbed(action, 0.0, generators(4, 5), LIMIT), action)


def test_a_jolt_replaces_the_moves_by_chance():
    action, often = torch.full((4000, 7), 0.03), torch.full((4000,), 0.2)
    found = jolted(action, often, generators(*range(4000)), LIMIT, (0, 1, 2, 5))
    moved = (found[:, :3] != action[:, :3]).all(-1)
    assert abs(float(moved.float().mean()) - 0.2) < 0.02
    assert torch.equal(found[~moved], action[~moved]) and torch.equal(found[:, [3, 4, 6]], action[:, [3, 4, 6]])
    for number, limit in ((0, 0.1), (2, 0.1), (5, 0.5)):
        drawn = found[moved, number]
        assert drawn.abs().max() <= limit and abs(float(drawn.std()) - limit / 3**0.5) < 0.05 * limit and abs(float(drawn.mean())) < 0.1 * limit
    assert torch.equal(jolted(action, often, generators(*range(4000)), LIMIT, (0, 1, 2))[:, 3:], action[:, 3:])


def test_a_jolt_is_a_matter_of_each_rows_own_generator_and_probability():
    action = torch.full((2, 7), 0.03)
    both = jolted(action, torch.tensor([0.0, 1.0]), generators(3, 7), LIMIT, (0, 1, 2))
    assert torch.equal(both[0], action[0])
    assert torch.equal(both[1:], jolted(action[:1], torch.ones(1), generators(7), LIMIT, (0, 1, 2)))


def test_an_episode_begins_with_none_to_three_jolts():
    assert random_starts(generators(*range(400))).bincount().tolist() == pytest.approx([100] * (START + 1), abs=30)


def test_a_slip_begins_by_chance_and_lasts_three_actions():
    sources, left, history = generators(*range(4000)), torch.zeros(4000, dtype=torch.int64), []
    for _ in range(4):
        left = slipping(left, 0.1, sources)
        history.append(left)
    slips = torch.stack(history) > 0
    assert abs(float(slips[0].float().mean()) - 0.1) < 0.015
    began = slips[0]
    assert slips[:3, began].all() and abs(float(slips[3, began].float().mean()) - 0.1) < 0.05
    assert not slipping(left * 0, 0.0, sources).any()
