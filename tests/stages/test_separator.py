"""Labels by hand on a dropped cube, then properties on random signals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stare_lit.stages.separator import PADDING, advance, initial, separate
from stare_lit.stages.tasks import get_spec

SPEC = get_spec("StackCube-v1")
K = SPEC.num_stages

# name: (tcp_to_object, contact, grasped, lift, object_to_target_xy, success)
STATES = {
    "far": (0.20, 0, 0, 0.00, 0.15, 0),
    "touch": (0.03, 1, 0, 0.00, 0.15, 0),
    "grasp": (0.01, 1, 1, 0.01, 0.15, 0),
    "lift": (0.01, 1, 1, 0.05, 0.15, 0),
    "over": (0.01, 1, 1, 0.06, 0.02, 0),
    "released": (0.04, 0, 0, 0.04, 0.01, 0),
    "retreated": (0.20, 0, 0, 0.04, 0.01, 0),
    "success": (0.20, 0, 0, 0.04, 0.01, 1),
}
NAMES = ("tcp_to_object", "contact", "grasped", "lift", "object_to_target_xy", "success")


def trajectory(*states: str) -> dict[str, torch.Tensor]:
    rows = torch.tensor([STATES[state] for state in states], dtype=torch.float32)
    signals = dict(zip(NAMES, rows.unbind(-1), strict=True))
    return signals | {name: torch.zeros(len(states)) for name in SPEC.signals - set(NAMES)}


def labels(*states: str, monotone: bool) -> list[int]:
    return separate(SPEC, trajectory(*states), torch.ones(len(states), dtype=torch.bool), monotone=monotone).tolist()


@pytest.mark.parametrize("monotone", [True, False])
def test_pick_and_place_by_hand(monotone):
    assert labels("far", "touch", "grasp", "lift", "over", "released", "retreated", "success", monotone=monotone) == [0, 1, 1, 2, 3, 3, 3, 4]


@pytest.mark.parametrize(("monotone", "expected"), [(True, [0, 1, 2, 2, 2, 3]), (False, [0, 1, 2, 0, 2, 3])])
def test_dropped_object_falls_back_online_only(monotone, expected):
    assert labels("far", "touch", "lift", "far", "lift", "over", monotone=monotone) == expected


def test_drop_within_reach_falls_back_to_the_grasp_only():
    assert labels("far", "lift", "touch", monotone=False) == [0, 2, 1]


def test_success_lost_falls_back_online_only():
    assert labels("success", "over", monotone=False) == [4, 3]
    assert labels("success", "over", monotone=True) == [4, 4]


def test_several_stages_may_end_in_one_step():
    assert labels("far", "over", monotone=True) == [0, 3]


def test_initial_state_may_be_advanced():
    assert initial(SPEC, {name: value[:1] for name, value in trajectory("lift").items()}).tolist() == [2]


def test_missing_signal_is_an_error():
    signals = trajectory("far")
    del signals["lift"]
    with pytest.raises(ValueError, match="'lift' is missing"):
        separate(SPEC, signals, torch.ones(1, dtype=torch.bool))


@st.composite
def random_signals(draw):
    """Signals [B, T] in which every flag and every side of every threshold is common."""
    batch, time, seed = draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)

    def uniform(high: float) -> torch.Tensor:
        return torch.rand(batch, time, generator=generator) * high

    signals = {name: uniform(0.08) for name in SPEC.signals}
    signals |= {name: (uniform(1.0) < 0.5).float() for name in ("contact", "grasped", "released")}
    signals["success"] = (uniform(1.0) < 0.1).float()
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    return signals, torch.arange(time) < lengths[:, None]


@settings(max_examples=60)
@given(random_signals())
def test_properties_of_labels(case):
    signals, mask = case
    offline, online = separate(SPEC, signals, mask), separate(SPEC, signals, mask, monotone=False)
    for label in (offline, online):
        assert ((label == PADDING) == ~mask).all()
        assert (label[mask] >= 0).all()
        assert (label[mask] <= K).all()
        assert (label[mask & (signals["success"] > 0.5)] == K).all()  # success ends every stage
    assert (offline[:, 1:] >= offline[:, :-1])[mask[:, 1:]].all()  # offline: never falls
    assert (online <= offline).all()  # a stage can only be lost online
    done_without_success = (online == K) & (signals["success"] < 0.5)
    assert not done_without_success.any()  # online nothing is paid for a success that no longer holds


@settings(max_examples=30)
@given(random_signals(), st.booleans())
def test_one_step_at_a_time_is_the_scan_and_rows_are_independent(case, monotone):
    signals, mask = case
    expected = separate(SPEC, signals, mask, monotone=monotone)
    for b in range(mask.shape[0]):
        row = {name: value[b] for name, value in signals.items()}
        index = initial(SPEC, {name: value[0] for name, value in row.items()})
        for t in range(int(mask[b].sum())):
            if t:
                index = advance(SPEC, index, {name: value[t] for name, value in row.items()}, monotone=monotone)
            assert index == expected[b, t]


@settings(max_examples=30)
@given(random_signals(), st.sampled_from([float("nan"), -1e9, 1.0]))
def test_masked_entries_do_not_matter(case, garbage):
    signals, mask = case
    dirty = {name: torch.where(mask, value, garbage) for name, value in signals.items()}
    assert (separate(SPEC, dirty, mask) == separate(SPEC, signals, mask)).all()


@settings(max_examples=30)
@given(random_signals())
def test_advance_is_idempotent_and_keeps_padding(case):
    signals, _ = case
    now = {name: value[:, 0] for name, value in signals.items()}
    for monotone in (True, False):
        once = advance(SPEC, torch.arange(now["lift"].shape[0]) % (K + 1), now, monotone=monotone)
        assert (advance(SPEC, once, now, monotone=monotone) == once).all()
        assert (advance(SPEC, torch.full_like(once, PADDING), now, monotone=monotone) == PADDING).all()
