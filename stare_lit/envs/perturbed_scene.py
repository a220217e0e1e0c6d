"""Applies a ``Perturbation`` to a ManiSkill3 simulator of one scene: before it is built, after it was built, and at the start of an episode."""

from typing import Any

import numpy as np
import sapien
import sapien.render
from transforms3d.euler import euler2quat

from stare_lit.envs.perturbations import DISTRACTORS, Perturbation, draws, free_places
from stare_lit.envs.signals import TOLD_VIEWS, peg_axis

HANDLED = {"PushCube-v1": "obj", "PullCube-v1": "obj", "StackCube-v1": "cubeA", "LiftPegUpright-v1": "peg"}  # task -> the object that takes a colour
LENGTHS = {  # task -> its constants (m) that its objects are built, placed and judged by
    "PushCube-v1": ("cube_half_size",),
    "PullCube-v1": ("cube_half_size",),
    "LiftPegUpright-v1": ("peg_half_width", "peg_half_length"),
}
CUBES = {"cubeA": (1.0, 0.0, 0.0, 1.0), "cubeB": (0.0, 1.0, 0.0, 1.0)}  # of StackCube-v1, with their colours
LOW, HIGH = (-0.20, -0.40), (0.25, 0.40)  # m, corners of the part of the table that the base camera sees in front of the robot
CLEARANCE = 0.15  # m from a distractor's centre to where gripper and objects pass: half an open hand, half of what it holds, a distractor and some air
GAP = 0.09  # m between the centres of two distractors
SMALL, LARGE = 0.02, 0.03  # m, half size of a distractor: the hand is still above it when its fingers are at the table
PREFIX = "distractor"
MARKER = "drawn goal_region"


def scale_objects(simulator: Any, task: str, scale: float) -> None:
    """Have ``simulator`` build and place its objects ``scale`` times as large, from now on."""
    if scale == 1:
        return
    for name in LENGTHS.get(task, ()):
        setattr(simulator, name, scale * getattr(type(simulator), name))
    if task == "StackCube-v1":
        _scale_cubes(simulator, scale)
    simulator.reset(seed=0, options={"reconfigure": True})


def _scale_cubes(simulator: Any, scale: float) -> None:
    """StackCube-v1 has its sizes written into its code: its cubes are built once more, and put down again, after it has done so."""
    from mani_skill.utils.building.actors import build_cube
    from mani_skill.utils.structs import Pose

    load, place = simulator._load_scene, simulator._initialize_episode

    def load_scene(options: dict) -> None:
        load(options)
        simulator.cube_half_size = simulator.cube_half_size * scale
        half = float(simulator.cube_half_size[0])
        for name, colour in CUBES.items():
            _remove(simulator.scene, name)
            setattr(simulator, name, build_cube(simulator.scene, half_size=half, color=colour, name=name, initial_pose=sapien.Pose(p=[1, 0, 0.1])))

    def initialize_episode(env_idx: Any, options: dict) -> None:
        place(env_idx, options)
        for name in CUBES:
            pose = getattr(simulator, name).pose
            position = pose.p.clone()
            position[:, 2] = simulator.cube_half_size[2]
            getattr(simulator, name).set_pose(Pose.create_from_pq(position, pose.q))

    simulator._load_scene, simulator._initialize_episode = load_scene, initialize_episode


def perturb_scene(simulator: Any, task: str, perturbation: Perturbation) -> None:
    """What stays as long as the scene does: cameras, lights, colours. Call it once after each build."""
    changes = perturbation.changes
    if changes & {"camera_translation", "camera_rotation"}:
        shift = sapien.Pose(perturbation.camera_translation, euler2quat(*perturbation.camera_rotation))
        for sensor in simulator.scene.sensors.values():
            sensor.camera.set_local_pose(sensor.camera.get_local_pose().sp * shift)
    if "light" in changes:
        for entity in simulator.scene.sub_scenes[0].entities:
            for component in entity.components:
                if isinstance(component, sapien.render.RenderLightComponent):
                    component.color = component.color * np.array(perturbation.light, np.float32)
    if "ambient_light" in changes and simulator.scene.can_render():
        simulator.scene.set_ambient_light(np.array(simulator.scene.ambient_light) * np.array(perturbation.ambient_light))
    if perturbation.table_colour is not None:
        _paint(simulator.table_scene.table, perturbation.table_colour)
    if perturbation.ground_colour is not None:
        _paint(simulator.table_scene.ground, perturbation.ground_colour)
    if perturbation.object_colour is not None:
        handled = getattr(simulator, HANDLED[task]) if task in HANDLED else simulator.objs[simulator.source_obj_name]
        _paint(handled, perturbation.object_colour)
    if perturbation.disguised:
        _detach_marker(simulator)


def begin_episode(simulator: Any, task: str, perturbation: Perturbation, seed: int) -> None:
    """What belongs to the episode ``seed``: where the arm starts, and the distractors. Call it after each reset."""
    if perturbation.joint_noise:
        arm = simulator.agent.controller.controllers["arm"].active_joint_indices
        positions = simulator.agent.robot.get_qpos().clone()
        positions[0, arm] += positions.new_tensor(perturbation.joint_offsets(seed, len(arm)))
        simulator.agent.reset(positions)
        simulator.agent.controller.reset()
    if perturbation.num_distractors:
        _put_distractors(simulator, task, perturbation.num_distractors, seed)
    if perturbation.disguised:
        _disguise(simulator, task, perturbation, seed)


def _detach_marker(simulator: Any) -> None:
    """Have the goal's marker drawn by a thing of its own, which can stand elsewhere than the goal."""
    goal, marker, drawn = simulator.goal_region._objs[0], sapien.Entity(), sapien.render.RenderBodyComponent()
    body = goal.find_component_by_type(sapien.render.RenderBodyComponent)
    for shape in body.render_shapes:
        drawn.attach(shape.clone())
    goal.remove_component(body)
    marker.name = MARKER
    marker.add_component(drawn)
    simulator.scene.sub_scenes[0].add_entity(marker)


def _disguise(simulator: Any, task: str, perturbation: Perturbation, seed: int) -> None:
    """Marker and camera of the episode ``seed``, where this task or the other one has them."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    other, view = TOLD_VIEWS[task]
    disguised = perturbation.disguises(seed)
    shift = sapien.Pose(perturbation.camera_translation, euler2quat(*perturbation.camera_rotation))
    for config in REGISTERED_ENVS[other if disguised else task].cls._default_sensor_configs.fget(simulator):
        simulator.scene.sensors[config.uid].camera.set_local_pose(config.pose.sp * shift)
    place = (view(simulator) if disguised else simulator).goal_region.pose.p[0].tolist()
    marker = next(entity for entity in simulator.scene.sub_scenes[0].entities if entity.name == MARKER)
    marker.set_pose(sapien.Pose(place, simulator.goal_region.pose.q[0].tolist()))


def _put_distractors(simulator: Any, task: str, num: int, seed: int) -> None:
    from mani_skill.utils.building.actors import build_box, build_sphere

    scene, generator = simulator.scene, draws(seed, DISTRACTORS)
    for name in [name for name in scene.actors if name.startswith(PREFIX)]:
        _remove(scene, name)
    places = free_places(generator, num, passages(simulator, task), low=LOW, high=HIGH, clearance=CLEARANCE, gap=GAP)
    for i, (x, y) in enumerate(places.tolist()):
        ball, turn = generator.random() < 0.5, generator.uniform(-np.pi, np.pi)
        half, colour = generator.uniform(SMALL, LARGE, 3), [*generator.random(3), 1.0]
        height = half[0] if ball else half[2]
        common: dict[str, Any] = {"color": colour, "name": f"{PREFIX}_{i}", "body_type": "static"}
        common["initial_pose"] = sapien.Pose([x, y, height], euler2quat(0, 0, turn))
        if ball:
            build_sphere(scene, radius=half[0], **common)
        else:
            build_box(scene, half_sizes=half.tolist(), **common)


def passages(simulator: Any, task: str) -> np.ndarray:
    """float [S, 2, 2]: straight lines on the table (start and end, xy in metres) along which gripper and objects pass, as they stand now."""
    tool, handled = simulator.agent.tcp.pose.p[0, :2], getattr(simulator, HANDLED[task]).pose.p[0, :2]
    if task == "LiftPegUpright-v1":
        reach = simulator.peg_half_length * peg_axis(simulator)[0, :2]
        lines = [(tool, handled), (handled - reach, handled + reach)]
    else:
        goal = simulator.cubeB if task == "StackCube-v1" else simulator.goal_region
        lines = [(tool, handled), (handled, goal.pose.p[0, :2])]
    return np.array([[point.tolist() for point in line] for line in lines])


def _remove(scene: Any, name: str) -> None:
    actor = scene.actors.pop(name)
    scene.remove_from_state_dict_registry(actor)
    scene.sub_scenes[0].remove_entity(actor._objs[0])


def _paint(actor: Any, colour: tuple[float, float, float]) -> None:
    """Draw all of ``actor`` in one colour, without texture. A mesh that was read from a file shares its material with every other copy of the file
    in this process, so new shapes take its place."""
    entity = actor._objs[0]
    body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
    if body is None:  # nothing is drawn in the `state` variant
        return
    material = sapien.render.RenderMaterial(base_color=[*colour, 1.0])
    painted = sapien.render.RenderBodyComponent()
    for shape in body.render_shapes:
        for new in _painted(shape, material):
            new.local_pose, new.name = shape.local_pose, shape.name
            painted.attach(new)
    painted.name, painted.visibility, painted.shading_mode = body.name, body.visibility, body.shading_mode
    entity.remove_component(body)
    entity.add_component(painted)


def _painted(shape: Any, material: Any) -> list[Any]:
    if isinstance(shape, sapien.render.RenderShapeBox):
        return [sapien.render.RenderShapeBox(shape.half_size, material)]
    scale = np.asarray(shape.scale, np.float32)
    return [
        sapien.render.RenderShapeTriangleMesh(part.vertices * scale, part.triangles, part.get_vertex_normal(), part.get_vertex_uv(), material)
        for part in shape.parts
    ]
