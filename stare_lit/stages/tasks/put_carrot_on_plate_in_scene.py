"""PutCarrotOnPlateInScene-v1 (SimplerEnv's Bridge tasks): the carrot onto the plate. Numbers are ours where not the environment's."""

from stare_lit.stages.pick_and_place import pick_and_place

SPEC = pick_and_place(
    "PutCarrotOnPlateInScene-v1",
    reach_distance=0.025,  # m from the carrot's centre; it is 0.032 wide
    keep_distance=0.06,  # m: it is 0.115 long and may be held beside its centre
    lift_height=0.03,  # m
    xy_tolerance=0.05,  # m: over the plate, whose half size is 0.055; the environment's success allows 0.081, half over its edge
    reach_scale=0.2,  # m: about the tool's distance from the carrot at a reset
    transport_scale=0.2,  # m: about the distance of the lifted carrot from the point above the plate
    place_scale=0.1,  # m: from that point (0.06 above the final pose) a little beyond
    goal_scale=0.25,  # m: about the largest distance of the carrot from its final pose at a reset
)
