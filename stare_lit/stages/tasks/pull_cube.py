"""PullCube-v1: PushCube-v1 from the other side. The signal ``tcp_to_pose`` is here the distance to the pull pose; scales and thresholds are the same."""

from dataclasses import replace

from stare_lit.stages.tasks.push_cube import SPEC as PUSH_CUBE

REACH, PUSH = PUSH_CUBE.stages

SPEC = replace(PUSH_CUBE, name="PullCube-v1", stages=(REACH, replace(PUSH, name="pull")))
