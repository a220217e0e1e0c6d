import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stare_lit.objectives.preference import segment_mean, sta_tpo_loss

LOG_2 = math.log(2)


def nll(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log(1 + math.exp(-x))


def pair(seed=0, pairs=3, steps=6, other_steps=5, stages=3):
    """Random log-ratios, labels (-1 and K among them), costs and preferences."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "log_ratio_a": torch.randn(pairs, steps, generator=generator),
        "log_ratio_b": torch.randn(pairs, other_steps, generator=generator),
        "stage_a": torch.randint(-1, stages + 1, (pairs, steps), generator=generator),
        "stage_b": torch.randint(-1, stages + 1, (pairs, other_steps), generator=generator),
        "cost_a": torch.rand(pairs, stages, generator=generator),
        "cost_b": torch.rand(pairs, stages, generator=generator),
        "preferred": torch.randint(-1, 2, (pairs, stages), generator=generator),
    }


def hand_case(preferred, **settings):
    """One pair, two stages. q_a = (0.4, 1.0), q_b = (-0.2, 0.1); l_a = (0.1, 0.5), l_b = (0.3, 0.2)."""
    return sta_tpo_loss(
        torch.tensor([[0.2, 0.6, 1.0]]),
        torch.tensor([[-0.2, 0.1, 9.0]]),
        torch.tensor([[0, 0, 1]]),
        torch.tensor([[0, 1, -1]]),
        torch.tensor([[0.1, 0.5]]),
        torch.tensor([[0.3, 0.2]]),
        torch.tensor([preferred]),
        beta=2.0,
        lmbda=0.5,
        **settings,
    )


def test_segment_mean_by_hand():
    x, segment = torch.tensor([[1.0, 3.0, 5.0, float("nan")]]), torch.tensor([[0, 0, 2, -1]])
    mean, size = segment_mean(x, segment, 3)
    assert mean.tolist() == [[2.0, 0.0, 5.0]]
    assert size.tolist() == [[2.0, 0.0, 1.0]]
    assert segment_mean(x, segment, 3, reduction="sum")[0].tolist() == [[4.0, 0.0, 5.0]]


def test_numbers_by_hand():
    # q_hat_a = (0.35, 0.75), q_hat_b = (-0.35, 0.0)
    both = hand_case([1, 1])
    assert both.loss.item() == pytest.approx((nll(2 * 0.7) + nll(2 * 0.75)) / 2)
    assert both.weight.item() == 1
    assert both.metrics["accuracy"].item() == 1.0
    assert both.metrics["gap"].item() == pytest.approx((0.6 + 0.9) / 2)
    assert hand_case([1, 0]).loss.item() == pytest.approx(nll(2 * 0.7))
    turned = hand_case([1, -1])  # the winner may change from stage to stage
    assert turned.loss.item() == pytest.approx((nll(2 * 0.7) + nll(-2 * 0.75)) / 2)
    assert turned.metrics["chosen"].item() == pytest.approx((0.4 + 0.1) / 2)
    assert turned.metrics["rejected"].item() == pytest.approx((-0.2 + 1.0) / 2)
    assert turned.metrics["accuracy"].item() == 0.5


def test_the_winners_likelihood_by_hand():
    assert hand_case([1, -1], rpo_alpha=3.0).loss.item() == pytest.approx(hand_case([1, -1]).loss.item() - 3.0 * (0.4 + 0.1) / 2)
    assert hand_case([0, 1], rpo_alpha=3.0).loss.item() == pytest.approx(nll(2 * 0.75) - 3.0 * 1.0)
    assert hand_case([0, 0], rpo_alpha=3.0).loss.item() == 0


def test_rpo_alpha_adds_the_gradient_of_the_winners_negative_log_likelihood():
    settings, case = {"beta": 0.7, "lmbda": 0.0}, pair(1)
    case["stage_a"], case["stage_b"] = torch.zeros_like(case["stage_a"]), torch.zeros_like(case["stage_b"])
    case["preferred"] = torch.tensor([[1, 0, 0], [-1, 0, 0], [1, 0, 0]])
    gradients = []
    for alpha in (0.0, 2.0):
        ratios = [case[name].clone().requires_grad_() for name in ("log_ratio_a", "log_ratio_b")]
        sta_tpo_loss(*ratios, *list(case.values())[2:], **settings, rpo_alpha=alpha).loss.backward()
        gradients.append([ratio.grad for ratio in ratios])
    for added, rows in ((gradients[1][0] - gradients[0][0], [True, False, True]), (gradients[1][1] - gradients[0][1], [False, True, False])):
        torch.testing.assert_close(added, torch.tensor(rows)[:, None] * torch.full_like(added, -2.0 / added.shape[1]))


def test_trajectory_pairs_without_a_stage_pair_are_dropped():
    out = hand_case([0, 0])
    assert (out.loss.item(), out.weight.item(), out.mean.item()) == (0, 0, 0)


def test_tpo_is_one_stage_without_cost():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    stage, cost = torch.zeros(4, 6, dtype=torch.int64), torch.zeros(4, 1)
    for reduction, q in (("mean", (a.mean(1), b.mean(1))), ("sum", (a.sum(1), b.sum(1)))):
        out = sta_tpo_loss(a, b, stage, stage, cost, cost, torch.ones(4, 1, dtype=torch.bool), beta=0.3, lmbda=0.0, reduction=reduction)
        expected = -torch.nn.functional.logsigmoid(0.3 * (q[0] - q[1])).mean()
        torch.testing.assert_close(out.mean, expected)


@given(st.integers(0, 2**31), st.floats(0.01, 10.0), st.sampled_from(["mean", "sum"]))
def test_equal_inputs_give_log_2(seed, beta, reduction):
    case = pair(seed)
    case["log_ratio_b"], case["stage_b"], case["cost_b"] = case["log_ratio_a"], case["stage_a"], case["cost_a"]
    case["preferred"][0, 0] = 1
    assert sta_tpo_loss(**case, beta=beta, lmbda=1.0, reduction=reduction).mean.item() == pytest.approx(LOG_2, rel=1e-5)


@given(st.integers(0, 2**31))
def test_at_step_0_the_loss_is_log_2_without_cost(seed):
    case = pair(seed)
    case["preferred"][0, 0] = 1
    zeros = {name: torch.zeros_like(case[name]) for name in ("log_ratio_a", "log_ratio_b")}
    assert sta_tpo_loss(**case | zeros, beta=1.0, lmbda=0.0).mean.item() == pytest.approx(LOG_2, rel=1e-5)


@given(st.integers(0, 2**31), st.sampled_from(["mean", "sum"]))
def test_masked_entries_do_not_matter_and_get_no_gradient(seed, reduction):
    case, settings = pair(seed), {"beta": 1.0, "lmbda": 0.5, "reduction": reduction}
    expected = sta_tpo_loss(**case, **settings)
    num_stages = case["preferred"].shape[1]
    uncounted = (case["stage_a"] < 0) | (case["stage_a"] >= num_stages)
    dirty = dict(case, log_ratio_a=torch.where(uncounted, float("nan"), case["log_ratio_a"]).requires_grad_())
    dirty["cost_a"] = torch.where(case["preferred"] == 0, float("nan"), case["cost_a"])
    out = sta_tpo_loss(**dirty, **settings)
    torch.testing.assert_close(out.loss, expected.loss)
    assert out.weight == expected.weight
    out.loss.backward()
    assert (dirty["log_ratio_a"].grad[uncounted] == 0).all()
    assert dirty["log_ratio_a"].grad.isfinite().all()


@given(st.integers(0, 2**31))
def test_exchanging_the_sides_and_the_preference_changes_nothing(seed):
    case = pair(seed)
    swapped = {name[:-1] + ("b" if name.endswith("a") else "a"): value for name, value in case.items() if name != "preferred"}
    settings = {"beta": 0.7, "lmbda": 1.0}
    torch.testing.assert_close(sta_tpo_loss(**swapped, preferred=-case["preferred"], **settings).loss, sta_tpo_loss(**case, **settings).loss)


@given(st.integers(0, 2**31))
def test_micro_batches_add_up(seed):
    case, settings = pair(seed), {"beta": 0.7, "lmbda": 1.0}
    whole = sta_tpo_loss(**case, **settings)
    parts = [sta_tpo_loss(**{name: value[i : i + 1] for name, value in case.items()}, **settings) for i in range(3)]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)
    assert sum(p.weight for p in parts) == whole.weight


def test_gradient_favours_the_winner():
    case = pair(3)
    case["preferred"], case["stage_a"] = torch.ones_like(case["preferred"]), torch.zeros_like(case["stage_a"])
    case["log_ratio_a"].requires_grad_()
    sta_tpo_loss(**case, beta=1.0, lmbda=0.0).loss.backward()
    assert (case["log_ratio_a"].grad < 0).all()


def test_lambda_is_a_margin_a_clear_pair_gets_a_smaller_gradient():
    gradients = []
    for cost_b in (0.1, 0.9):  # a wins with cost 0
        ratio = torch.zeros(1, 1, requires_grad=True)
        stage = torch.zeros(1, 1, dtype=torch.int64)
        sta_tpo_loss(
            ratio, torch.zeros(1, 1), stage, stage, torch.zeros(1, 1), torch.full((1, 1), cost_b), torch.ones(1, 1).bool(), beta=1.0, lmbda=1.0
        ).loss.backward()
        gradients.append(ratio.grad.abs().item())
    assert gradients[1] < gradients[0]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"beta: 0\.0"):
        sta_tpo_loss(**pair(), beta=0.0, lmbda=0.0)
    with pytest.raises(ValueError, match=r"lmbda: -1\.0"):
        sta_tpo_loss(**pair(), beta=1.0, lmbda=-1.0)
    with pytest.raises(ValueError, match=r"rpo_alpha: -1\.0"):
        sta_tpo_loss(**pair(), beta=1.0, lmbda=0.0, rpo_alpha=-1.0)
    with pytest.raises(ValueError, match="reduction: 'max' is unknown"):
        inspect.unwrap(segment_mean)(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), 1, reduction="max")
