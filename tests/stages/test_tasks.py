"""One class over all tasks."""

import pytest
import torch

from stare_lit.stages.calculator import potential, stage_error, whole_task_error
from stare_lit.stages.predicates import Flag
from stare_lit.stages.separator import initial, separate
from stare_lit.stages.tasks import get_spec, known_tasks

TASKS = (
    "LiftPegUpright-v1",
    "PullCube-v1",
    "PushCube-v1",
    "PutCarrotOnPlateInScene-v1",
    "PutEggplantInBasketScene-v1",
    "PutSpoonOnTableClothInScene-v1",
    "StackCube-v1",
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
    "StackYellowCubeOnGreenCubeBakedTexInScene-v1",
    "Toy-v0",
)


def test_known_tasks():
    assert known_tasks() == TASKS


@pytest.mark.parametrize("task", ["PickCube-v1", "PushCube-v9", "", "push_cube"])
def test_unknown_task_lists_the_known_ones(task):
    with pytest.raises(ValueError, match="StackCube-v1"):
        get_spec(task)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("PushCube-v1", ("reach", "push")),
        ("PullCube-v1", ("reach", "pull")),
        ("StackCube-v1", ("reach", "grasp", "transport", "place")),
        ("LiftPegUpright-v1", ("reach", "grasp", "lift", "upright")),
        ("Toy-v0", ("reach", "grasp", "transport", "place")),
    ],
)
def test_stage_names(task, names):
    assert get_spec(task).names == names


@pytest.mark.parametrize("task", TASKS)
class TestEveryTask:
    def far(self, task: str, batch: int = 2) -> dict[str, torch.Tensor]:
        """A state in which nothing is achieved: flags unset, lift 0, distances and angles large."""
        flags = {"success", "contact", "grasped", "released", "static", "on_target", "upright", "lift"}
        return {name: torch.full((batch,), 0.0 if name in flags else 10.0) for name in get_spec(task).signals}

    def test_nothing_achieved_is_stage_0_with_full_error(self, task):
        spec, signals = get_spec(task), self.far(task)
        index = initial(spec, signals)
        assert index.tolist() == [0, 0]
        assert stage_error(spec, index, signals).tolist() == [1.0, 1.0]
        torch.testing.assert_close(whole_task_error(spec, signals), torch.ones(2))

    def test_success_alone_ends_every_stage(self, task):
        spec, signals = get_spec(task), self.far(task) | {"success": torch.ones(2)}
        index = initial(spec, signals)
        assert index.tolist() == [spec.num_stages] * 2
        error = stage_error(spec, index, signals)
        assert error.tolist() == [0.0, 0.0]
        assert potential(index, error, spec.num_stages).tolist() == [1.0, 1.0]

    def test_every_stage_but_the_last_can_be_lost(self, task):
        spec = get_spec(task)
        assert all(stage.keeps is not None for stage in spec.stages[:-1])
        assert spec.stages[-1].ends == Flag("success")

    def test_labels_are_valid_on_random_signals(self, task):
        spec, generator = get_spec(task), torch.Generator().manual_seed(0)
        signals = {name: torch.rand(8, 20, generator=generator) * 0.1 for name in spec.signals}
        signals |= {name: (torch.rand(8, 20, generator=generator) < 0.5).float() for name in ("contact", "grasped", "released") if name in spec.signals}
        index = separate(spec, signals, torch.ones(8, 20, dtype=torch.bool), monotone=False)
        error = stage_error(spec, index, signals)
        assert set(index.unique().tolist()) <= set(range(spec.num_stages))
        assert ((error >= 0) & (error <= 1)).all()
