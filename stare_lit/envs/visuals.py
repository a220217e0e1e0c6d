"""Light visual meshes for software rendering.

On a CPU the time of a camera image goes into the triangles of the scene (the Panda alone has 134,000, the floor 20,000), not into its pixels.
``lighten`` replaces dense untextured meshes by decimated ones with the same material, scale and pose, and dense textured rectangles by two
triangles; other textured meshes stay as they are. Physics never sees a visual mesh, so it is untouched.
"""

import numpy as np
import sapien.render

from stare_lit.envs.decimation import COARSENESS, flat_rectangle, light_mesh

DENSE_TRIANGLES = 1_000  # shapes with no more than this are left as they are: fingers, the objects of a task
MARK = "(light)"  # ends the name of a render body that was replaced: decimated once more, it would lose its shape
TEXTURES = ("base_color", "normal", "roughness", "metallic", "emission", "transmission")


def _is_textured(material: "sapien.render.RenderMaterial") -> bool:
    return any(getattr(material, f"{name}_texture") is not None for name in TEXTURES)


def _light_part(part: "sapien.render.RenderShapeTriangleMeshPart", scale: np.ndarray, coarseness: float) -> "sapien.render.RenderShapeTriangleMesh | None":
    """``part`` as a shape of its own with fewer triangles; None where it is textured and no rectangle."""
    vertices, triangles = part.vertices * scale, part.triangles
    if np.prod(scale) < 0:
        triangles = triangles[:, ::-1]  # a mirror turns the surface inside out
    if not _is_textured(part.material):
        points, faces, normals = light_mesh(vertices, triangles, coarseness)
        return sapien.render.RenderShapeTriangleMesh(points, faces, normals, np.zeros((len(points), 2), np.float32), part.material)
    uvs = part.get_vertex_uv()
    two = flat_rectangle(vertices, triangles, uvs)
    if two is None:
        return None
    keep, faces = np.unique(two, return_inverse=True)
    normals = part.get_vertex_normal()[keep]  # along an axis: a scale leaves its direction
    return sapien.render.RenderShapeTriangleMesh(vertices[keep], faces.reshape(2, 3).astype(np.uint32), normals, uvs[keep], part.material)


def _light_shapes(shape: "sapien.render.RenderShape", coarseness: float) -> "list[sapien.render.RenderShapeTriangleMesh] | None":
    """One light shape for each part of a dense ``shape``; None where it stays as it is."""
    if not isinstance(shape, sapien.render.RenderShapeTriangleMesh) or _num_triangles(shape) <= DENSE_TRIANGLES:
        return None
    lights = []
    for part in shape.parts:
        light = _light_part(part, np.asarray(shape.scale, np.float32), coarseness)
        if light is None:
            return None
        light.local_pose, light.name = shape.local_pose, shape.name
        lights.append(light)
    return lights if sum(_num_triangles(light) for light in lights) < _num_triangles(shape) else None


def _num_triangles(shape: "sapien.render.RenderShapeTriangleMesh") -> int:
    return sum(len(part.triangles) for part in shape.parts)


def lighten(scenes: "list[sapien.Scene]", coarseness: float = COARSENESS) -> int:
    """Replace dense visual meshes in place.

    Args:
        scenes: the simulator's scenes, after they were built.
        coarseness: metres, see ``decimate``.

    Returns:
        How many render bodies were replaced (0 where nothing was dense: calling it twice changes nothing).
    """
    replaced = 0
    for scene in scenes:
        for entity in scene.entities:
            body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
            if body is None or body.name.endswith(MARK):
                continue
            found = [(shape, _light_shapes(shape, coarseness)) for shape in body.render_shapes]
            if all(lights is None for _, lights in found):
                continue
            light = sapien.render.RenderBodyComponent()
            for shape, lights in found:
                for new in [shape.clone()] if lights is None else lights:
                    light.attach(new)
            light.name, light.visibility, light.shading_mode = body.name + MARK, body.visibility, body.shading_mode
            entity.remove_component(body)
            entity.add_component(light)
            replaced += 1
    return replaced
