"""Stage pairs: numbers worked out by hand, then invariants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stare_lit.data.pairs import Outcomes, PairRule, build_pairs, grape_score, stage_preference, whole_trajectory


def outcomes(completed, total_error=None, *, decisions=None, state=None, cost=None, log_likelihood=None) -> Outcomes:
    completed = torch.tensor(completed, dtype=torch.bool)
    zeros = torch.zeros(completed.shape)
    return Outcomes(
        state=torch.zeros(len(completed), dtype=torch.long) if state is None else torch.tensor(state),
        completed=completed,
        decisions=torch.full(completed.shape, 2) if decisions is None else torch.tensor(decisions),
        cost=zeros if cost is None else torch.tensor(cost),
        total_error=zeros if total_error is None else torch.tensor(total_error),
        log_likelihood=zeros[:, 0] if log_likelihood is None else torch.tensor(log_likelihood),
    )


def preference(table: Outcomes, *, use_cost: bool = True, min_gap: float = 0.5) -> list[int]:
    return stage_preference(table, torch.tensor([0]), torch.tensor([1]), use_cost=use_cost, min_gap=min_gap)[0].tolist()


class TestStagePreference:
    def test_completed_beats_not_completed_and_closes_later_stages(self):
        assert preference(outcomes([[1, 0, 0], [0, 0, 0]])) == [1, 0, 0]
        assert preference(outcomes([[1, 0, 0], [1, 1, 0]])) == [0, -1, 0]

    def test_winner_may_change_from_stage_to_stage(self):
        table = outcomes([[1, 1, 1], [1, 1, 0]], [[5.0, 2.0, 1.0], [3.0, 4.0, 9.0]])
        assert preference(table) == [-1, 1, 1]

    def test_lower_error_needs_the_minimum_gap(self):
        table = outcomes([[1, 1], [1, 1]], [[3.0, 2.0], [3.4, 2.5]])
        assert preference(table, min_gap=0.5) == [0, 1]
        assert preference(table, min_gap=0.0) == [1, 1]

    def test_equal_errors_never_make_a_pair(self):
        assert preference(outcomes([[1], [1]], [[3.0], [3.0]]), min_gap=0.0) == [0]

    def test_neither_completed_makes_no_pair_whatever_the_error(self):
        assert preference(outcomes([[0, 0], [0, 0]], [[1.0, 0.0], [9.0, 0.0]])) == [0, 0]

    def test_without_cost_two_completed_stages_make_no_pair(self):
        table = outcomes([[1, 1], [1, 0]], [[1.0, 1.0], [9.0, 9.0]])
        assert preference(table, use_cost=False) == [0, 1]

    def test_a_stage_passed_within_one_decision_makes_no_pair(self):
        assert preference(outcomes([[1, 1], [1, 0]], decisions=[[3, 0], [3, 4]])) == [0, 0]


class TestBuildPairs:
    def test_only_equal_initial_states_are_paired(self):
        pairs = build_pairs(outcomes([[1], [0], [0], [1]], state=[7, 8, 7, 8]), PairRule())
        assert (pairs.a.tolist(), pairs.b.tolist(), pairs.preferred.tolist()) == ([0, 1], [2, 3], [[1], [-1]])

    def test_pairs_without_a_stage_pair_are_dropped(self):
        pairs = build_pairs(outcomes([[0], [0]]), PairRule())
        assert len(pairs) == 0 and pairs.preferred.shape == (0, 1)

    def test_max_pairs_per_state_is_kept_and_seeded(self):
        table = outcomes([[1], [1], [1], [0], [0], [0]] * 2, state=[0] * 6 + [1] * 6)
        first, again, other = (build_pairs(table, PairRule(max_pairs_per_state=4), seed=seed) for seed in (0, 0, 1))
        assert len(first) == 8 and torch.equal(first.a, again.a) and torch.equal(first.b, again.b)
        assert not (torch.equal(first.a, other.a) and torch.equal(first.b, other.b))

    def test_tpo_is_one_stage_that_success_decides(self):
        table = outcomes([[1, 1], [1, 0], [0, 0]], [[9.0, 9.0], [1.0, 1.0], [0.0, 0.0]])
        pairs = build_pairs(table, PairRule(kind="success", use_cost=False))
        assert (pairs.a.tolist(), pairs.b.tolist(), pairs.preferred.tolist()) == ([0, 0], [1, 2], [[1], [1]])

    def test_best_against_worst_follows_the_score(self):
        # scores: 2 + 0.01 e^-1 - 0.02, 0.01 e^0 - 0.1, 0.01 e^-0.5 - 0.01, 2 + 0.01 e^-0.2 - 0.5
        table = outcomes(
            [[1, 1], [0, 0], [1, 0], [1, 1]],
            cost=[[0.5, 0.5], [0.0, 0.0], [0.5, 0.0], [0.1, 0.1]],
            log_likelihood=[-2.0, -10.0, -1.0, -50.0],
        )
        rule = PairRule(kind="best_worst", use_cost=False, max_pairs_per_state=1)
        pairs = build_pairs(table, rule)
        assert (pairs.a.tolist(), pairs.b.tolist(), pairs.preferred.tolist()) == ([0], [1], [[1]])

    def test_grape_score_by_hand(self):
        score = grape_score(torch.tensor([-10.0]), torch.tensor([[0.25, 0.75]]), torch.tensor([True]))
        torch.testing.assert_close(score, torch.tensor([-0.1 + 0.01 * 0.36787944 + 2.0]))

    def test_best_against_worst_uses_no_trajectory_twice(self):
        table = outcomes([[1], [0], [1], [0], [0]], log_likelihood=[-1.0, -2.0, -3.0, -4.0, -5.0])
        pairs = build_pairs(table, PairRule(kind="best_worst", use_cost=False))
        assert (pairs.a.tolist(), pairs.b.tolist()) == ([0, 2], [4, 3])

    @settings(max_examples=50, deadline=None)
    @given(data=st.data(), size=st.integers(2, 6), stages=st.integers(1, 4))
    def test_swapping_the_two_swaps_the_winner(self, data, size, stages):
        done = data.draw(st.lists(st.integers(0, stages), min_size=size, max_size=size))
        table = outcomes(
            [[int(d > k) for k in range(stages)] for d in done],
            data.draw(st.lists(st.lists(st.floats(0, 20), min_size=stages, max_size=stages), min_size=size, max_size=size)),
        )
        a, b = torch.randint(size, (5,)), torch.randint(size, (5,))
        forth = stage_preference(table, a, b, use_cost=True, min_gap=0.5)
        assert torch.equal(forth, -stage_preference(table, b, a, use_cost=True, min_gap=0.5))
        # a stage pair asks for the stage before in both
        both = table.completed[a] & table.completed[b]
        assert not (forth.ne(0)[:, 1:] & ~both[:, :-1]).any()


def test_whole_trajectory_counts_every_decision_and_knows_no_cost():
    whole = whole_trajectory(outcomes([[1, 0], [1, 1]], decisions=[[3, 4], [1, 2]], cost=[[0.1, 0.2], [0.3, 0.4]]))
    assert whole.completed.tolist() == [[False], [True]]
    assert whole.decisions.tolist() == [[7], [3]] and whole.cost.sum() == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "dpo"}, "kind='dpo'"),
        ({"kind": "success"}, "use_cost=True with kind='success'"),
        ({"min_gap": -1.0}, "min_gap=-1.0"),
        ({"max_pairs_per_state": 0}, "max_pairs_per_state=0"),
    ],
)
def test_bad_rules_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        PairRule(**bad)
