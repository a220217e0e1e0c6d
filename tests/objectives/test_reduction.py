import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stare_lit.objectives.reduction import masked_mean, masked_standardize

NAN = float("nan")


def test_mean_by_hand():
    x, mask = torch.tensor([1.0, 3.0, NAN]), torch.tensor([True, True, False])
    assert masked_mean(x, mask).item() == 2.0
    assert masked_mean(x[:2]).item() == 2.0
    assert masked_mean(x, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_standardize_by_hand():
    x, mask = torch.tensor([1.0, 3.0, NAN]), torch.tensor([True, True, False])
    torch.testing.assert_close(masked_standardize(x, mask, eps=0.0), torch.tensor([-1.0, 1.0, 0.0]))
    assert masked_standardize(torch.tensor([5.0])).item() == 0.0


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_standardized_entries_have_mean_0_and_std_1(seed, size):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3 + 7
    y = masked_standardize(x)
    assert y.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert y.std(correction=0).item() == pytest.approx(1.0 if size > 1 else 0.0, abs=2e-2)


def test_masked_entries_get_no_gradient_even_where_nan():
    x = torch.tensor([1.0, NAN], requires_grad=True)
    masked_mean(x, torch.tensor([True, False])).backward()
    assert x.grad.tolist() == [1.0, 0.0]
