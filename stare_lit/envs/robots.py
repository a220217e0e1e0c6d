"""What differs between the robots of the tasks: controller, camera, tool, the size of an action; and the fixed layouts of the Bridge tasks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Robot:
    """How one robot is driven and seen.

    Attributes:
        assets: ids of its assets that do not come with ManiSkill.
        control_mode: ManiSkill's controller; every one takes 7 numbers: translation, rotation, gripper (1 opens, -1 closes).
        camera: the camera that a policy sees through unless another is named.
        tool: the link between the fingertips.
        action_limit: greatest absolute value of each number of an action. A Panda's actions are shares of its longest step, in [-1, 1];
            WidowX's are metres and radians (its controller takes more; nobody needs more in a step of 0.2 s).
        corrected: numbers of an action in which its demonstrators correct whatever happened: a Panda's never turn.
        steps_per_second: control steps of the robot's own time.
        judged_at_end: the benchmark counts success at the last step, so an episode is not over when it first succeeds.
    """

    assets: tuple[str, ...]
    control_mode: str
    camera: str
    tool: str
    action_limit: tuple[float, ...]
    corrected: tuple[int, ...]
    steps_per_second: int
    judged_at_end: bool


PANDA = Robot((), "pd_ee_delta_pose", "base_camera", "panda_hand_tcp", (1.0,) * 7, (0, 1, 2), steps_per_second=20, judged_at_end=False)
WIDOWX = Robot(
    assets=("widowx250s",),
    control_mode="arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
    camera="3rd_view_camera",
    tool="ee_gripper_link",
    action_limit=(0.05,) * 3 + (0.4,) * 3 + (1.0,),
    corrected=(0, 1, 2, 5),
    steps_per_second=5,
    judged_at_end=True,
)

OFFICIAL_LAYOUTS = {
    "PutCarrotOnPlateInScene-v1": 24,
    "PutSpoonOnTableClothInScene-v1": 24,
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": 24,
    "StackYellowCubeOnGreenCubeBakedTexInScene-v1": 24,
    "PutEggplantInBasketScene-v1": 64,
}
"""How many fixed layouts SimplerEnv evaluates of each Bridge task (``episode_id`` 0, 1, ...); yellow on green is ours, its layouts with the roles exchanged."""


def robot_of(task: str) -> Robot:
    """The robot of a task; the toy's acts as a Panda does."""
    return WIDOWX if task in OFFICIAL_LAYOUTS else PANDA
