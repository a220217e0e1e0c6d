"""StackCube-v1: pick cube A, carry it over cube B, put it down. Numbers are ours where not the environment's."""

from stare_lit.stages.pick_and_place import pick_and_place

SPEC = pick_and_place(
    "StackCube-v1",
    reach_distance=0.025,  # m from the cube's centre; its half size is 0.02
    keep_distance=0.05,  # m
    lift_height=0.03,  # m; on top of the other cube it lies 0.04 above its start
    xy_tolerance=0.0333,  # m that the environment's success allows: norm([0.02, 0.02]) + 0.005
    reach_scale=0.3,  # m: about the tool's distance from the cube at a reset
    transport_scale=0.2,  # m: about the largest distance from the lifted cube to the point above its target
    place_scale=0.1,  # m: from the point above the target (0.03 above the final pose) a little beyond the tolerance
    goal_scale=0.3,  # m: about the largest distance of the cube from its final pose at a reset
)
