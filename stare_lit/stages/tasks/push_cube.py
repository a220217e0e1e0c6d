"""PushCube-v1: bring the fingers to the push pose of the cube, then push the cube into the goal region. Stages and scales are ours."""

from stare_lit.stages.predicates import Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec

REACH_DISTANCE = 0.02
"""Metres between the tcp and the push pose of the cube at which reaching ends."""
KEEP_DISTANCE = 0.05
"""Metres beyond which the push pose counts as lost again; looser than REACH_DISTANCE, for the cube moves under the fingers."""
REACH_SCALE = 0.3
"""Metres: about the tcp's distance from the push pose at a reset."""
GOAL_SCALE = 0.2
"""Metres: the cube's distance from the goal's centre at a reset (success below 0.1)."""

REACH_ERROR = ErrorTerm("tcp_to_pose", scale=REACH_SCALE)
GOAL_ERROR = ErrorTerm("object_to_goal_xy", scale=GOAL_SCALE)

SPEC = StageSpec(
    name="PushCube-v1",
    stages=(
        Stage("reach", ends=Below("tcp_to_pose", REACH_DISTANCE), error=(REACH_ERROR,), keeps=Below("tcp_to_pose", KEEP_DISTANCE)),
        Stage("push", ends=Flag("success"), error=(GOAL_ERROR,)),
    ),
    whole_task=(REACH_ERROR, GOAL_ERROR),
)
