"""Light visual meshes for software rendering.

On a CPU the time of a camera image goes into the triangles of the scene (the Panda alone has 134,000), not into its pixels. ``lighten``
replaces dense untextured meshes by decimated ones with the same material and pose. Physics never sees a visual mesh, so it is untouched.
"""

from functools import lru_cache

import fast_simplification
import numpy as np
import sapien.render
import trimesh

DENSE_TRIANGLES = 1_000  # meshes below are left as they are
LIGHT_TRIANGLES = 300  # what a dense mesh is reduced to, about


@lru_cache(maxsize=256)
def _decimated(vertices: bytes, triangles: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decimated mesh as flat-shaded triangles: vertices float32 [3F, 3], triangles uint32 [F, 3], normals float32 [3F, 3].

    Keyed by content, so that the environments of one process share the work. Flat shading: averaged normals of a coarse mesh bend the light
    across what were hard edges.
    """
    mesh = trimesh.Trimesh(
        np.frombuffer(vertices, np.float32).reshape(-1, 3), np.frombuffer(triangles, np.uint32).reshape(-1, 3), process=False, validate=False
    )
    mesh.merge_vertices(merge_norm=True, merge_tex=True)  # exporters split vertices at seams; unmerged, decimation would tear the surface there
    reduction = max(0.0, 1.0 - LIGHT_TRIANGLES / len(mesh.faces))
    points, faces = fast_simplification.simplify(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), reduction)
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    keep = area > 0
    normal = normal[keep] / area[keep, None]
    flat = corners[keep].reshape(-1, 3)
    return flat.astype(np.float32), np.arange(len(flat), dtype=np.uint32).reshape(-1, 3), np.repeat(normal, 3, axis=0).astype(np.float32)


def _light_shapes(shape: "sapien.render.RenderShapeTriangleMesh") -> list["sapien.render.RenderShapeTriangleMesh"]:
    """One decimated shape for each part of ``shape``, in the shape's own frame."""
    lights = []
    for part in shape.parts:
        scale = np.asarray(shape.scale, np.float32)
        vertices = np.ascontiguousarray(part.vertices * scale, np.float32)
        points, faces, normals = _decimated(vertices.tobytes(), np.ascontiguousarray(part.triangles, np.uint32).tobytes())
        light = sapien.render.RenderShapeTriangleMesh(points, faces, normals, np.zeros((len(points), 2), np.float32), part.material)
        light.local_pose = shape.local_pose
        light.name = shape.name
        lights.append(light)
    return lights


def _is_dense(shape: "sapien.render.RenderShape") -> bool:
    if not isinstance(shape, sapien.render.RenderShapeTriangleMesh):
        return False
    textured = any(part.material.base_color_texture is not None for part in shape.parts)
    return not textured and sum(len(part.triangles) for part in shape.parts) > DENSE_TRIANGLES


def lighten(scenes: "list[sapien.Scene]") -> int:
    """Replace dense untextured visual meshes in place.

    Args:
        scenes: the simulator's scenes, after they were built.

    Returns:
        How many render bodies were replaced (0 where nothing was dense: calling it twice changes nothing).
    """
    replaced = 0
    for scene in scenes:
        for entity in scene.entities:
            body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
            if body is None or not any(_is_dense(shape) for shape in body.render_shapes):
                continue
            light = sapien.render.RenderBodyComponent()
            for shape in body.render_shapes:
                for new in _light_shapes(shape) if _is_dense(shape) else [shape.clone()]:
                    light.attach(new)
            light.name, light.visibility, light.shading_mode = body.name, body.visibility, body.shading_mode
            entity.remove_component(body)
            entity.add_component(light)
            replaced += 1
    return replaced
