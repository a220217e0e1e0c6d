"""Meshes with fewer triangles that look the same: numpy in, numpy out, kept on disk."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import fast_simplification
import numpy as np
import trimesh

VERSION = 1  # of the algorithm below; a change that alters its meshes raises it, so that older files are not read
COARSENESS = 0.01  # m; no edge collapses whose quadric error (a sum of squared distances to the planes it stood for) is above its square
CREASE = np.radians(30)  # rad; edges sharper than this stay edges to the light
AGGRESSIVENESS = 3.0  # of fast_simplification: its k-th pass, k = 0..99, collapses what costs less than 1e-9 (k + 3)^AGGRESSIVENESS
SMALL = 0.1  # of a part's largest extent: no coarser than this, or screws would vanish
LEAST_TRIANGLES = 4
MANY_TRIANGLES = 1_200  # a part of many loose pieces (screws, vents) keeps more than this, for edges join no two pieces: its vertices are welded first


class Mesh(NamedTuple):
    """Vertices float32 [V, 3], triangles uint32 [F, 3] (counter-clockwise seen from outside), unit normals float32 [V, 3], metres."""

    vertices: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray


def cache_folder() -> Path:
    """Where decimated meshes are kept between processes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stare_lit" / "meshes"


def decimate(vertices: np.ndarray, triangles: np.ndarray, coarseness: float = COARSENESS) -> Mesh:
    """Collapse edges, cheapest first, as long as the surface moves less than about ``coarseness``.

    One error for all parts of a robot spends the triangles where the shape needs them, which a number of triangles a part does not.

    Args:
        vertices: float32 [V, 3], metres, in the frame and at the scale in which they are drawn.
        triangles: integers [F, 3].
        coarseness: metres.
    """
    mesh = trimesh.Trimesh(vertices, triangles, process=False, validate=False)
    mesh.merge_vertices(merge_norm=True, merge_tex=True)  # exporters split vertices at seams; unmerged, decimation would tear the surface there
    coarseness = min(coarseness, SMALL * float(np.ptp(mesh.vertices, axis=0).max()))
    light = _collapse(mesh, coarseness)
    if len(light.faces) > MANY_TRIANGLES:
        cell = coarseness / 2
        rough = trimesh.Trimesh(mesh.vertices / cell, mesh.faces, process=False, validate=False)
        rough.merge_vertices(merge_norm=True, merge_tex=True, digits_vertex=0)
        rough.update_faces(rough.nondegenerate_faces() & rough.unique_faces())
        light = _collapse(rough.apply_scale(cell), coarseness)
    mesh = light if len(light.faces) else mesh
    mesh = trimesh.graph.smooth_shade(mesh, angle=CREASE, facet_minarea=None)
    return Mesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32), np.asarray(mesh.vertex_normals, np.float32))


def _collapse(mesh: trimesh.Trimesh, coarseness: float) -> trimesh.Trimesh:
    unit = coarseness / np.sqrt(1e-9 * 102**AGGRESSIVENESS)  # in this unit of length the library's last pass is at `coarseness`
    points, faces = np.asarray(mesh.vertices) / unit, np.asarray(mesh.faces, np.int32)
    if len(faces) > LEAST_TRIANGLES:
        points, faces = fast_simplification.simplify(points, faces, target_count=LEAST_TRIANGLES, agg=AGGRESSIVENESS)
    light = trimesh.Trimesh(points * unit, faces, process=False, validate=False)
    light.update_faces(light.nondegenerate_faces())
    return light


def light_mesh(vertices: np.ndarray, triangles: np.ndarray, coarseness: float = COARSENESS) -> Mesh:
    """``decimate``, once for each content: remembered in this process and on disk.

    A file that is damaged is made again; a disk that cannot be written costs the time, nothing else.
    """
    vertices, triangles = np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(triangles, np.uint32)
    settings = (VERSION, coarseness, CREASE, AGGRESSIVENESS, SMALL, LEAST_TRIANGLES, MANY_TRIANGLES, vertices.shape, triangles.shape)
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(vertices.data)
    digest.update(triangles.data)
    path = cache_folder() / f"{digest.hexdigest()}.npz"
    found = _remembered(path)
    if not found:
        found.append(_read(path) or _write(path, decimate(vertices, triangles, coarseness)))
    return found[0]


@lru_cache(maxsize=1024)
def _remembered(path: Path) -> list[Mesh]:
    """The place in memory for the mesh of ``path``, empty at first."""
    return []


def _read(path: Path) -> Mesh | None:
    """The mesh in ``path``; None where there is none that can be drawn."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mesh = Mesh(*(file[name] for name in Mesh._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    shaped = all(array.ndim == 2 and array.shape[1] == 3 for array in mesh) and len(mesh.normals) == len(mesh.vertices)
    typed = [array.dtype.name for array in mesh] == ["float32", "uint32", "float32"]
    return mesh if shaped and typed and mesh.triangles.size and mesh.triangles.max() < len(mesh.vertices) else None


def _write(path: Path, mesh: Mesh) -> Mesh:
    """Put ``mesh`` at ``path`` in one move, so that processes that start together see a whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.savez(file, **mesh._asdict())
                file.close()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError:
        pass  # no room or no right to write: the next process decimates again
    return mesh


def flat_rectangle(vertices: np.ndarray, triangles: np.ndarray, uvs: np.ndarray) -> np.ndarray | None:
    """The two triangles of a textured rectangle, exactly: what a floor of 20,000 squares looks like.

    Args:
        vertices: float32 [V, 3]; triangles: integers [F, 3]; uvs: float32 [V, 2], texture coordinates (beyond [0, 1] the texture repeats).

    Returns:
        uint32 [2, 3], indices of ``vertices``; None unless the mesh is a whole rectangle along the axes of its frame, wound one way, whose
        texture lies on it without a seam (uv is affine in the position).
    """
    low, high = vertices.min(0), vertices.max(0)
    flat = np.flatnonzero(high - low <= 1e-6 * (high - low).max())
    if len(flat) != 1:
        return None
    axes = [axis for axis in range(3) if axis != flat[0]]
    plane = vertices[:, axes].astype(np.float64)
    corners = plane[triangles]
    doubled = np.linalg.det(corners[:, 1:] - corners[:, :1])  # signed, twice the area
    whole = np.isclose(abs(doubled.sum()) / 2, np.prod(high[axes] - low[axes]), rtol=1e-5)
    design = np.column_stack([plane, np.ones(len(plane))])
    affine = np.abs(design @ np.linalg.lstsq(design, uvs.astype(np.float64), rcond=None)[0] - uvs).max() < 1e-4
    if not (whole and affine and ((doubled > 0).all() or (doubled < 0).all())):
        return None
    (left, bottom), (right, top) = low[axes], high[axes]
    around = [(left, bottom), (right, bottom), (right, top), (left, top)]
    found = [int(np.abs(plane - corner).max(1).argmin()) for corner in around]
    if any(np.abs(plane[index] - corner).max() > 1e-4 for index, corner in zip(found, around, strict=True)):
        return None
    a, b, c, d = found if doubled[0] > 0 else found[::-1]
    return np.array([[a, b, c], [a, c, d]], np.uint32)
