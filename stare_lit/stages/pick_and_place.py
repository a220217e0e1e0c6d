"""The paper's four stages of picking an object and placing it: reach, grasp, transport, place."""

from stare_lit.stages.predicates import Above, AllOf, AnyOf, Below, Flag
from stare_lit.stages.spec import ErrorTerm, Stage, StageSpec


def pick_and_place(
    name: str,
    *,
    reach_distance: float,
    keep_distance: float,
    lift_height: float,
    xy_tolerance: float,
    reach_scale: float,
    transport_scale: float,
    place_scale: float,
    goal_scale: float,
) -> StageSpec:
    """The stages of a pick-and-place task; all lengths in metres.

    Its signals: ``tcp_to_object``, ``contact``, ``grasped``, ``lift``, ``object_to_target_xy``, ``object_to_above_target``, ``object_to_final``,
    ``released``, ``success`` (see ``envs/signals.py``).

    Args:
        name: environment id.
        reach_distance: between tool and object's centre, at which reaching ends (or at contact).
        keep_distance: beyond which the object counts as out of reach again.
        lift_height: above its start at which the grasped object counts as picked up.
        xy_tolerance: horizontal distance from the target's centre at which placing begins.
        reach_scale, transport_scale, place_scale, goal_scale: at which the error of tool to object, of object to the point above the target, and
            of object to its final pose (in the last stage, and over the whole task) is full.
    """
    over_target = Below("object_to_target_xy", xy_tolerance)
    delivered = AllOf(over_target, Above("lift", lift_height))  # neither reach nor grasp is needed any more while placing opens the fingers
    reach_error = ErrorTerm("tcp_to_object", scale=reach_scale)
    return StageSpec(
        name=name,
        stages=(
            Stage(
                "reach",
                ends=AnyOf(Flag("contact"), Below("tcp_to_object", reach_distance)),
                error=(reach_error,),
                keeps=AnyOf(Below("tcp_to_object", keep_distance), Flag("grasped"), delivered),
            ),
            Stage(
                "grasp",
                ends=AllOf(Flag("grasped"), Above("lift", lift_height)),
                error=(ErrorTerm.missing("lift", lift_height), ErrorTerm.not_("grasped")),
                keeps=AnyOf(Flag("grasped"), delivered),
            ),
            Stage("transport", ends=over_target, error=(ErrorTerm("object_to_above_target", scale=transport_scale),), keeps=over_target),
            Stage("place", ends=Flag("success"), error=(ErrorTerm("object_to_final", scale=place_scale), ErrorTerm.not_("released"))),
        ),
        whole_task=(reach_error, ErrorTerm("object_to_final", scale=goal_scale)),
    )
