"""Toy-v0: the staged pick-and-place of ``envs/toy.py``, with the paper's four stages. All numbers are ours."""

from stare_lit.stages.predicates import Above, AllOf, AnyOf, Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

REACH_DISTANCE = 0.045
"""Metres between gripper and block at which reaching ends: the gripper grasps from there."""
KEEP_DISTANCE = 0.09
"""Metres beyond which the block counts as out of reach again."""
LIFT_HEIGHT = 0.03
"""Metres above the table at which the block counts as lifted."""
XY_TOLERANCE = 0.05
"""Metres of horizontal offset from the pad that success allows."""
REACH_SCALE = 0.3
"""Metres: a long way from gripper to block at a reset."""
GOAL_SCALE = 0.3
"""Metres: a long way from block to pad at a reset."""
PLACE_SCALE = 0.1
"""Metres: about the height from which the block is put down."""

OVER_TARGET = Below("object_to_target_xy", XY_TOLERANCE)
REACH_ERROR = ErrorTerm("tcp_to_object", scale=REACH_SCALE)

SPEC = StageSpec(
    name="Toy-v0",
    stages=(
        Stage(
            "reach",
            ends=AnyOf(Flag("grasped"), Below("tcp_to_object", REACH_DISTANCE)),
            error=(REACH_ERROR,),
            keeps=AnyOf(Below("tcp_to_object", KEEP_DISTANCE), OVER_TARGET),
        ),
        Stage(
            "grasp",
            ends=AllOf(Flag("grasped"), Above("lift", LIFT_HEIGHT)),
            error=(ErrorTerm.missing("lift", LIFT_HEIGHT), ErrorTerm.not_("grasped")),
            keeps=AnyOf(Flag("grasped"), OVER_TARGET),
        ),
        Stage("transport", ends=OVER_TARGET, error=(ErrorTerm("object_to_target_xy", scale=GOAL_SCALE),), keeps=OVER_TARGET),
        Stage("place", ends=Flag("success"), error=(ErrorTerm("object_to_final", scale=PLACE_SCALE), ErrorTerm.not_("released"))),
    ),
    whole_task=(REACH_ERROR, ErrorTerm("object_to_final", scale=GOAL_SCALE)),
)
