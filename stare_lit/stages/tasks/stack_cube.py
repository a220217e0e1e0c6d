"""StackCube-v1: pick cube A, carry it over cube B, put it down. The paper's four pick-and-place stages; numbers are ours where not the environment's."""

from stare_lit.stages.predicates import Above, AllOf, AnyOf, Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

REACH_DISTANCE = 0.025
"""Metres between the tcp and the cube's centre at which reaching ends (half size 0.02)."""
KEEP_DISTANCE = 0.05
"""Metres beyond which the cube counts as out of reach again."""
LIFT_HEIGHT = 0.03
"""Metres above its start at which the cube counts as lifted (on top of the other cube it lies 0.04 above)."""
XY_TOLERANCE = 0.0333
"""Metres of horizontal offset between the cubes that the environment's success allows: norm([0.02, 0.02]) + 0.005."""
REACH_SCALE = 0.3
"""Metres: about the tcp's distance from the cube at a reset."""
TRANSPORT_SCALE = 0.2
"""Metres: about the largest distance from the lifted cube to the point above its target."""
PLACE_SCALE = 0.1
"""Metres: from the point above the target (0.03 above the final pose) a little beyond the tolerance."""
GOAL_SCALE = 0.3
"""Metres: about the largest distance of the cube from its final pose at a reset."""

OVER_TARGET = Below("object_to_target_xy", XY_TOLERANCE)
STACKED = AllOf(OVER_TARGET, Above("lift", LIFT_HEIGHT))
"""Above or on the other cube: neither the grasp nor the reach is needed any more, while placing opens the fingers."""
REACH_ERROR = ErrorTerm("tcp_to_object", scale=REACH_SCALE)

SPEC = StageSpec(
    name="StackCube-v1",
    stages=(
        Stage(
            "reach",
            ends=AnyOf(Flag("contact"), Below("tcp_to_object", REACH_DISTANCE)),
            error=(REACH_ERROR,),
            keeps=AnyOf(Below("tcp_to_object", KEEP_DISTANCE), Flag("grasped"), STACKED),
        ),
        Stage(
            "grasp",
            ends=AllOf(Flag("grasped"), Above("lift", LIFT_HEIGHT)),
            error=(ErrorTerm.missing("lift", LIFT_HEIGHT), ErrorTerm.not_("grasped")),
            keeps=AnyOf(Flag("grasped"), STACKED),
        ),
        Stage("transport", ends=OVER_TARGET, error=(ErrorTerm("object_to_above_target", scale=TRANSPORT_SCALE),), keeps=OVER_TARGET),
        Stage("place", ends=Flag("success"), error=(ErrorTerm("object_to_final", scale=PLACE_SCALE), ErrorTerm.not_("released"))),
    ),
    whole_task=(REACH_ERROR, ErrorTerm("object_to_final", scale=GOAL_SCALE)),
)
