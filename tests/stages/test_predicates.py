import inspect

import pytest
import torch

from stare_lit.stages.predicates import Above, AllOf, AnyOf, Below, Flag, Predicate

SIGNALS = {"d": torch.tensor([0.1, 0.2, 0.3, float("nan")]), "f": torch.tensor([1.0, 0.0, 1.0, 0.0])}


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (Below("d", 0.2), [True, False, False, False]),  # strict, NaN never holds
        (Above("d", 0.2), [False, False, True, False]),
        (Flag("f"), [True, False, True, False]),
        (AllOf(Below("d", 0.25), Flag("f")), [True, False, False, False]),
        (AnyOf(Below("d", 0.25), Flag("f")), [True, True, True, False]),
        (AnyOf(AllOf(Above("d", 0.25), Flag("f")), Below("d", 0.15)), [True, False, True, False]),
    ],
)
def test_truth_by_hand(predicate, expected):
    assert isinstance(predicate, Predicate)
    assert predicate(SIGNALS).tolist() == expected


def test_signals_are_collected_through_nesting():
    assert AnyOf(AllOf(Above("a", 1.0), Flag("b")), Below("c", 1.0)).signals == {"a", "b", "c"}


def test_predicates_are_values():
    assert AllOf(Flag("a"), Flag("b")) == AllOf(Flag("a"), Flag("b")) != AnyOf(Flag("a"), Flag("b"))
    assert len({Below("a", 1.0), Below("a", 1.0)}) == 1


def test_missing_signal_names_what_is_there():
    with pytest.raises(ValueError, match=r"'contact' is missing, present are \['d', 'f'\]"):
        Flag("contact")(SIGNALS)


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_empty_composition_is_refused(kind):
    with pytest.raises(ValueError, match="at least one predicate"):
        kind()


def test_shapes_are_checked_under_pytest():
    from stare_lit.stages.calculator import phi

    assert inspect.unwrap(phi) is not phi
    with pytest.raises(TypeError):
        phi(torch.zeros(3, dtype=torch.int64), "linear")
