"""PutEggplantInBasketScene-v1 (SimplerEnv's Bridge tasks): out of the sink, into the basket beside it. Numbers are ours where not the environment's."""

from stare_lit.stages.pick_and_place import pick_and_place

SPEC = pick_and_place(
    "PutEggplantInBasketScene-v1",
    reach_distance=0.03,  # m from the eggplant's centre; it is 0.038 wide
    keep_distance=0.06,  # m: it is 0.078 long and may be held beside its centre
    lift_height=0.05,  # m
    xy_tolerance=0.06,  # m: inside the basket; the environment's success allows 0.079
    reach_scale=0.2,  # m: about the tool's distance from the eggplant at a reset
    transport_scale=0.25,  # m: about the distance of the lifted eggplant from the point above the basket
    place_scale=0.1,  # m: from that point (0.06 above the final pose) a little beyond
    goal_scale=0.25,  # m: about the distance of the eggplant from the basket at a reset
)
