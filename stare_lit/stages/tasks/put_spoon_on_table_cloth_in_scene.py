"""PutSpoonOnTableClothInScene-v1 (SimplerEnv's Bridge tasks): the spoon onto the towel. Numbers are ours where not the environment's."""

from stare_lit.stages.pick_and_place import pick_and_place

SPEC = pick_and_place(
    "PutSpoonOnTableClothInScene-v1",
    reach_distance=0.03,  # m from the spoon's centre, which lies low
    keep_distance=0.07,  # m: it is 0.14 long and may be held beside its centre
    lift_height=0.03,  # m
    xy_tolerance=0.05,  # m: half size of the towel; the environment's success allows 0.074, half over its edge
    reach_scale=0.2,  # m: about the tool's distance from the spoon at a reset
    transport_scale=0.2,  # m: about the distance of the lifted spoon from the point above the towel
    place_scale=0.1,  # m: from that point (0.06 above the final pose) a little beyond
    goal_scale=0.25,  # m: about the largest distance of the spoon from its final pose at a reset
)
