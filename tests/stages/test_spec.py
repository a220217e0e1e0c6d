import pytest
import torch

from stare_lit.stages.predicates import Above, Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec, weighted_mean

TERM = ErrorTerm("d", scale=0.2)


def spec(*stages: Stage, whole_task: tuple[ErrorTerm, ...] = (TERM,)) -> StageSpec:
    return StageSpec("Task-v0", stages, whole_task)


LAST = Stage("place", ends=Flag("success"), error=(TERM,))


@pytest.mark.parametrize(
    ("term", "x", "expected"),
    [
        (ErrorTerm("x", scale=0.2), [0.0, 0.05, 0.2, 0.9], [0.0, 0.25, 1.0, 1.0]),
        (ErrorTerm("x", scale=0.2, target=0.1), [0.0, 0.1, 0.2], [0.5, 0.0, 0.5]),
        (ErrorTerm.not_("x"), [0.0, 1.0], [1.0, 0.0]),
        (ErrorTerm.missing("x", 0.04), [0.0, 0.01, 0.04, 0.3, -0.1], [1.0, 0.75, 0.0, 0.0, 1.0]),
    ],
)
def test_error_terms_by_hand(term, x, expected):
    torch.testing.assert_close(term({"x": torch.tensor(x)}), torch.tensor(expected))


def test_weighted_mean_by_hand():
    terms = (ErrorTerm("a", scale=1.0, weight=3.0), ErrorTerm("b", scale=1.0))
    torch.testing.assert_close(weighted_mean(terms, {"a": torch.tensor([0.2]), "b": torch.tensor([1.0])}), torch.tensor([0.4]))


def test_signals_list_everything_the_task_needs():
    reach = Stage("reach", ends=Below("tcp", 0.02), error=(ErrorTerm("tcp", scale=0.3),), keeps=Above("lift", 0.01))
    task = spec(reach, LAST)
    assert task.signals == {"tcp", "lift", "d", "success"}
    assert (task.num_stages, task.names) == (2, ("reach", "place"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ErrorTerm("x", scale=0.0), "scale: 0.0"),
        (lambda: ErrorTerm("x", scale=1.0, weight=-1.0), "weight: -1.0"),
        (lambda: spec(), "at least one Stage"),
        (lambda: spec(Stage("place", ends=Flag("a"), error=(TERM,)), LAST), "unique"),
        (lambda: spec(Stage("", ends=Flag("a"), error=(TERM,)), LAST), "unique and not empty"),
        (lambda: spec(Stage("place", ends=Flag("other"), error=(TERM,))), "must end with"),
        (lambda: spec(Stage("reach", ends=Flag("a"), error=()), LAST), "'reach'.*no ErrorTerm"),
        (lambda: spec(LAST, whole_task=()), "whole_task"),
    ],
)
def test_bad_specs_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
