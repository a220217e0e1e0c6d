"""``ManiSkillExpert``: the scripted demonstrator of a ManiSkill3 task, acting in the policy's own action space.

To add one, write a function from the simulator and a ``Memory`` to an action, and name it in ``CONTROLLERS`` of its robot's module.
"""

from typing import Any

from torch import Tensor

from stare_lit.experts import panda, widowx
from stare_lit.experts.memory import Memory

CONTROLLERS = panda.CONTROLLERS | widowx.CONTROLLERS


class ManiSkillExpert:
    """The controller of one task, with its memory; see ``stare_lit.types.Expert``."""

    def __init__(self, task: str) -> None:
        if task not in CONTROLLERS:
            raise ValueError(f"task={task!r} has no demonstrator; choose one of {sorted(CONTROLLERS)} (or Toy-v0).")
        self._controller = CONTROLLERS[task]
        self._memory = Memory()

    def reset(self) -> None:
        """Forget the episode."""
        self._memory = Memory()

    def act(self, env: Any) -> Tensor:
        """The next action, float32 [7] within the robot's limits, for the single-scene ``ManiSkillEnv`` ``env``."""
        return self._controller(env.simulator, self._memory)
