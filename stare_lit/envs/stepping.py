"""One control step of a CPU simulator: ManiSkill's controllers of both robots, ``pd_ee_delta_pose`` and the WidowX's, on scalars.

ManiSkill's controller works on batched tensors; for one scene nine tenths of its time (2 ms a step) are calls of tensor operations on three or four
numbers. Here the same arithmetic is done on float32 scalars in the same order, and the inverse kinematics and the physics are the simulator's own, so
that the joint targets, and with them every trajectory, are those of ManiSkill to the bit (a test steps both side by side).
"""

from math import pi
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.utils.geometry.rotation_conversions import euler_angles_to_matrix, matrix_to_quaternion
from mani_skill.utils.structs import Pose
from torch import Tensor

Quaternion = tuple[np.float32, np.float32, np.float32, np.float32]
Vector = tuple[np.float32, np.float32, np.float32]

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
SMALLEST_DENOMINATOR = np.float32(0.1)  # of ManiSkill's conversion from matrix to quaternion


def _product(a: Quaternion, b: Quaternion) -> Quaternion:
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def _standard(q: Quaternion) -> Quaternion:
    """The one of ``q`` and ``-q`` whose real part is not negative."""
    return (-q[0], -q[1], -q[2], -q[3]) if q[0] < 0 else q


def _rotate(q: Quaternion, v: Vector) -> Vector:
    return _product(_product(q, (ZERO, *v)), (q[0], -q[1], -q[2], -q[3]))[1:]


def _from_euler(angles: Tensor) -> Quaternion:
    """Quaternion of intrinsic rotations about X, Y, Z by ``angles`` (float32 [3], radians)."""
    if angles.abs().sum() >= pi / 2:  # its real part need not be the greatest then, by which ManiSkill divides
        return tuple(matrix_to_quaternion(euler_angles_to_matrix(angles, "XYZ")).numpy())
    cx, cy, cz = torch.cos(angles).numpy()  # torch's functions, for numpy's differ in the last bit
    sx, sy, sz = torch.sin(angles).numpy()
    sxsy, cxsy = sx * sy, -cx * sy
    m00, m01, m02 = cy * cz, -cy * sz, sy
    m10, m11, m12 = sxsy * cz + cx * sz, sxsy * -sz + cx * cz, -sx * cy
    m20, m21, m22 = cxsy * cz + sx * sz, cxsy * -sz + sx * cz, cx * cy
    w = torch.sqrt(torch.tensor([ONE + m00 + m11 + m22])).numpy()[0]
    scale = TWO * max(w, SMALLEST_DENOMINATOR)
    return _standard((w * w / scale, (m21 - m12) / scale, (m02 - m20) / scale, (m10 - m01) / scale))


class EndEffectorStepper:
    """Executes actions float32 [7]: translation and rotation of the tool in the robot's base frame, and the gripper in [-1, 1].

    A Panda's are shares in [-1, 1] of its longest step and start from where the tool is; a WidowX's are metres and radians and start from where the tool
    was last told to be.

    Made for one built scene; a rebuilt one needs a new stepper.

    Args:
        simulator: an unwrapped ManiSkill environment with one scene on CPU physics (see ``fits``).
    """

    def __init__(self, simulator: Any) -> None:
        controllers = simulator.agent.controller.controllers
        arm, gripper = controllers["arm"], controllers["gripper"]
        self._simulator, self._physics = simulator, simulator.scene.px
        self._robot = arm.articulation._objs[0]
        self._tool, self._base = arm.ee_link._objs[0], arm.root_link._objs[0]
        self._arm, half = arm, np.float32(0.5)
        if arm.config.normalize_action:
            low, high = arm.action_space_low[:3].numpy(), arm.action_space_high[:3].numpy()
            self._middle, self._range = half * (high + low), half * (high - low)
            self._rotation = np.float32(arm.config.rot_lower)
        low, high = gripper.action_space_low.numpy(), gripper.action_space_high.numpy()
        self._gripper_middle, self._gripper_range = (half * (high + low))[0], (half * (high - low))[0]
        self._arm_joints = [joint._objs[0] for joint in arm.joints]
        self._gripper_joints = [joint._objs[0] for joint in gripper.joints]
        self._arm_index = arm.active_joint_indices.numpy()
        kinematics = arm.kinematics
        self._solve, self._link, self._mask = kinematics.pmodel.compute_inverse_kinematics, kinematics.end_link_idx, kinematics.qmask
        self._model_index = kinematics.pmodel_active_joint_indices.numpy()
        self._result_index = kinematics.pmodel_controlled_joint_indices.numpy()

    @staticmethod
    def fits(simulator: Any) -> bool:
        """Whether ``simulator`` is one scene on the CPU under exactly a controller that is reproduced here."""
        from mani_skill.agents.base_agent import BaseAgent
        from mani_skill.agents.controllers import PDEEPoseController, PDJointPosMimicController
        from mani_skill.agents.controllers.base_controller import CombinedController

        controller: Any = getattr(simulator.agent, "controller", None)
        if simulator.scene.gpu_sim_enabled or simulator.num_envs != 1:
            return False
        if type(simulator.agent).before_simulation_step is not BaseAgent.before_simulation_step:  # which is for controllers that interpolate
            return False
        if type(controller) is not CombinedController or list(controller.controllers) != ["arm", "gripper"]:
            return False
        arm, gripper = controller.controllers["arm"], controller.controllers["gripper"]
        if type(arm) is not PDEEPoseController or type(gripper) is not PDJointPosMimicController:
            return False
        plain = not any((arm.config.interpolate, gripper.config.use_delta, gripper.config.interpolate))
        equal = bool((gripper._multiplier == 1).all() and (gripper._offset == 0).all()) and len(gripper.control_joint_indices) == 1
        framed = arm.config.frame == "root_translation:root_aligned_body_rotation"
        robots = arm.config.use_target != arm.config.normalize_action  # neither is a Panda's, nor both
        return plain and equal and framed and robots and arm.config.use_delta and gripper.config.normalize_action

    def _tool_in_base(self) -> tuple[Vector, Quaternion]:
        base, tool = self._base.entity_pose, self._tool.entity_pose
        w, x, y, z = base.q
        inverse = (w, -x, -y, -z)
        px, py, pz = base.p
        ox, oy, oz = _rotate(inverse, (-px, -py, -pz))
        x, y, z = _rotate(inverse, tuple(tool.p))
        return (ox + x, oy + y, oz + z), _standard(_product(inverse, tuple(tool.q)))

    def _start(self) -> tuple[Vector, Quaternion]:
        """Where an action starts from, in the robot's base frame."""
        if not self._arm.config.use_target:
            return self._tool_in_base()
        x, y, z, *q = self._arm._target_pose.raw_pose[0].numpy()
        return (x, y, z), tuple(q)

    def _motion(self, action: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Metres [3] and radians [3] of an action."""
        rotation = torch.from_numpy(action[3:6])
        if not self._arm.config.normalize_action:
            return action[:3], rotation
        norm = torch.linalg.norm(rotation)
        if norm > 1:
            rotation = rotation * (1 / norm)
        return self._middle + self._range * np.clip(action[:3], -1, 1), rotation * float(self._rotation)

    def _arm_targets(self, action: np.ndarray) -> np.ndarray:
        """Joint positions float32 [J] that the arm is to reach; where it already is, if the kinematics find no solution."""
        (dx, dy, dz), angles = self._motion(action)
        (x, y, z), q = self._start()
        p, q = (x + dx, y + dy, z + dz), _standard(_product(_from_euler(angles), q))
        if self._arm.config.use_target:
            self._arm._target_pose = Pose(raw_pose=torch.from_numpy(np.array([[*p, *q]], np.float32)))
        target = sapien.Pose(p, q)
        positions = self._robot.qpos
        solution, found, _ = self._solve(self._link, target, initial_qpos=positions[self._model_index], active_qmask=self._mask, max_iterations=100)
        return solution[self._result_index].astype(np.float32) if found else positions[self._arm_index]

    def step(self, action: np.ndarray) -> None:
        """Set the targets of one action and simulate one control step; ValueError for an action that is not finite."""
        if not np.isfinite(action).all():
            raise ValueError(f"action={action.tolist()}: must be finite.")
        for joint, target in zip(self._arm_joints, self._arm_targets(action), strict=True):
            joint.set_drive_target(target)
        opening = self._gripper_middle + self._gripper_range * min(max(action[6], -ONE), ONE)
        for joint in self._gripper_joints:
            joint.set_drive_target(opening)
        simulator = self._simulator
        simulator._before_control_step()
        for _ in range(simulator._sim_steps_per_control):
            simulator._before_simulation_step()
            self._physics.step()
            simulator._after_simulation_step()
        simulator._after_control_step()
        simulator._elapsed_steps += 1
