"""LiftPegUpright-v1: pick the lying peg and stand it upright on the table. Stages and scales are ours.

The last stage ends with the environment's own flag (it is the benchmark), although that flag reads an Euler angle and is wrong for some
poses; the error inside it is the true angle between the peg's axis and the vertical.
"""

from math import pi

from stare_lit.stages.predicates import Above, AnyOf, Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

REACH_DISTANCE = 0.02
"""Metres between the tcp and the nearest point of the peg's axis at which reaching ends."""
KEEP_DISTANCE = 0.05
"""Metres beyond which the peg counts as out of reach again."""
LIFT_HEIGHT = 0.03
"""Metres of the peg's centre above its start at which it counts as lifted (upright it stands about 0.095 above)."""
KEEP_HEIGHT = 0.02
"""Metres below which a lifted peg counts as dropped."""
REACH_SCALE = 0.3
"""Metres: about the tcp's distance from the peg at a reset."""
HEIGHT_SCALE = 0.1
"""Metres: about the centre's distance from its upright height while the peg lies flat."""
ANGLE_SCALE = pi / 2
"""Radians: the angle of a lying peg to the vertical."""

LIFTED = Above("lift", KEEP_HEIGHT)
REACH_ERROR = ErrorTerm("tcp_to_object", scale=REACH_SCALE)

SPEC = StageSpec(
    name="LiftPegUpright-v1",
    stages=(
        Stage(
            "reach",
            ends=AnyOf(Flag("contact"), Below("tcp_to_object", REACH_DISTANCE)),
            error=(REACH_ERROR,),
            keeps=AnyOf(Below("tcp_to_object", KEEP_DISTANCE), Flag("grasped"), LIFTED),
        ),
        Stage(
            "grasp",
            ends=Flag("grasped"),
            error=(ErrorTerm.not_("grasped"), ErrorTerm("tcp_to_object", scale=KEEP_DISTANCE)),
            keeps=AnyOf(Flag("grasped"), LIFTED),
        ),
        Stage("lift", ends=Above("lift", LIFT_HEIGHT), error=(ErrorTerm.missing("lift", LIFT_HEIGHT),), keeps=LIFTED),
        Stage("upright", ends=Flag("success"), error=(ErrorTerm("axis_to_vertical", scale=ANGLE_SCALE), ErrorTerm("height_error", scale=HEIGHT_SCALE))),
    ),
    whole_task=(
        REACH_ERROR,
        ErrorTerm("axis_to_vertical", scale=ANGLE_SCALE, weight=0.5),  # the two halves of the object-to-goal error
        ErrorTerm("height_error", scale=HEIGHT_SCALE, weight=0.5),
    ),
)
