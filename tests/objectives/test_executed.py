import torch

from stare_lit.objectives.executed import sum_executed


def test_only_executed_steps_count_and_get_gradient():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [float("nan"), float("nan")]], [[7.0, 7.0], [7.0, 7.0]]], requires_grad=True)
    total = sum_executed(x, torch.tensor([2, 1, 0]))
    assert total.tolist() == [10.0, 11.0, 0.0]
    total.sum().backward()
    assert x.grad.tolist() == [[[1, 1], [1, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]
