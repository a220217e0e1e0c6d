"""``make_demonstrator``: any task's scripted expert, with the environment that it reads."""

from typing import Any

from torchrl.envs import EnvBase

from stare_lit.envs.factory import TOY, toy_settings
from stare_lit.types import Expert

REVISIONS = {
    "StackCube-v1": 2,
    "PutCarrotOnPlateInScene-v1": 6,
    "PutSpoonOnTableClothInScene-v1": 8,
    "PutEggplantInBasketScene-v1": 8,
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": 5,
    "StackYellowCubeOnGreenCubeBakedTexInScene-v1": 5,
}
"""Demonstrators that act, whose robots sense, or whose layouts are drawn otherwise than in their first form: demonstrations carry the number, so that
earlier ones are not taken for the present one's."""


def make_demonstrator(task: str, *, toy_batch: int = 1, **settings: Any) -> tuple[EnvBase, Expert]:
    """Environment and expert of ``task``, in this process.

    Args:
        task: "Toy-v0" (batch size [toy_batch]) or a ManiSkill3 task (batch size []).
        settings: of the environment, as ``envs.factory.make_env`` takes them.

    Raises:
        ValueError: a task without a demonstrator, or a setting that does not fit.
    """
    if task == TOY:
        from stare_lit.envs.toy import ToyEnv
        from stare_lit.experts.toy import ToyExpert

        return ToyEnv(toy_batch, **toy_settings(settings)), ToyExpert()
    from stare_lit.envs.maniskill import ManiSkillEnv
    from stare_lit.experts.maniskill import ManiSkillExpert

    expert = ManiSkillExpert(task)  # first: it refuses an unknown task at once
    return ManiSkillEnv(task, **settings), expert
