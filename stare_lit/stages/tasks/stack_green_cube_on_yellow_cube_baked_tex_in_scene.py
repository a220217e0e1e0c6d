"""StackGreenCubeOnYellowCubeBakedTexInScene-v1 (SimplerEnv's Bridge tasks): two cubes of 3 cm. Numbers are ours where not the environment's."""

from stare_lit.stages.pick_and_place import pick_and_place

SPEC = pick_and_place(
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
    reach_distance=0.025,  # m from the cube's centre; its half size is 0.015
    keep_distance=0.05,  # m
    lift_height=0.025,  # m; on top of the other cube it lies 0.03 above its start
    xy_tolerance=0.0242,  # m that the environment's success allows: norm([0.015, 0.015]) + 0.003
    reach_scale=0.2,  # m: about the tool's distance from the cube at a reset
    transport_scale=0.2,  # m: about the largest distance of the lifted cube from the point above its target
    place_scale=0.1,  # m: from that point (0.06 above the final pose) a little beyond
    goal_scale=0.25,  # m: about the largest distance of the cube from its final pose at a reset
)
