"""Decimated meshes: near the surface, sharp where it was; made once for all processes, whatever happens to the file."""

import multiprocessing
import os

import numpy as np
import pytest
import trimesh

from stare_lit.envs import decimation
from stare_lit.envs.decimation import Mesh, cache_folder, decimate, flat_rectangle, light_mesh


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decimation._remembered.cache_clear()
    yield
    decimation._remembered.cache_clear()


def ball(subdivisions=5):
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.1)
    return np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.uint32)


def grid(n=10):
    """A floor of n x n squares, 1 m each, its texture repeated every 4 m."""
    x, y = (axis.reshape(-1) for axis in np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij"))
    vertices = np.stack([x, y, np.full_like(x, -0.9)], 1).astype(np.float32)
    first = np.array([i * (n + 1) + j for i in range(n) for j in range(n)])
    triangles = np.concatenate([np.stack([first, first + n + 1, first + n + 2], 1), np.stack([first, first + n + 2, first + 1], 1)])
    return vertices, triangles, (vertices[:, :2] / 4 + 0.5).astype(np.float32)


def test_a_ball_stays_a_ball():
    vertices, triangles = ball()
    light = decimate(vertices, triangles)
    radius = np.linalg.norm(light.vertices, axis=1)
    assert len(triangles) == 20_480 and len(light.triangles) < 500
    assert np.abs(radius - 0.1).max() < decimation.COARSENESS
    assert np.allclose(np.linalg.norm(light.normals, axis=1), 1, atol=1e-5)
    assert ((light.normals * light.vertices).sum(1) > 0.9 * radius).all()  # still outwards, still round


def test_a_box_keeps_its_edges():
    box = trimesh.creation.box((0.2, 0.1, 0.3)).subdivide_loop(0).subdivide().subdivide().subdivide()
    light = decimate(np.asarray(box.vertices), np.asarray(box.faces))
    rebuilt = trimesh.Trimesh(light.vertices, light.triangles)
    assert len(light.triangles) < len(box.faces) / 10
    assert np.allclose(np.sort(np.abs(light.normals), axis=1), [0, 0, 1], atol=1e-4)  # no normal leans over an edge
    assert rebuilt.volume == pytest.approx(0.2 * 0.1 * 0.3, rel=1e-3)


def test_loose_pieces_are_welded():
    balls = trimesh.util.concatenate(
        [trimesh.creation.icosphere(subdivisions=2, radius=0.004).apply_translation(0.008 * np.array(np.unravel_index(i, (20, 20, 1)))) for i in range(400)]
    )
    light = decimate(np.asarray(balls.vertices), np.asarray(balls.faces))
    assert len(light.triangles) < len(balls.faces) / 30
    assert np.abs(light.vertices - balls.bounds.mean(0)).max() < 0.09  # still where they were


def test_once_for_all_processes(monkeypatch):
    first = light_mesh(*ball())
    assert len(list(cache_folder().iterdir())) == 1
    decimation._remembered.cache_clear()  # a new process
    monkeypatch.setattr(decimation, "decimate", lambda *arguments: pytest.fail("decimated again"))
    second = light_mesh(*ball())
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert light_mesh(*ball()) is second


def test_the_key_is_the_content():
    vertices, triangles = ball(3)
    moved = vertices.copy()
    moved[0] *= 1.01
    for arguments in ((vertices, triangles), (moved, triangles), (vertices, triangles[:-1]), (vertices, triangles, 0.02)):
        light_mesh(*arguments)
    assert len(list(cache_folder().iterdir())) == 4


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def objects(path):
    np.savez(path, vertices=np.array([print], dtype=object), triangles=np.zeros((1, 3), np.uint32), normals=np.zeros((1, 3), np.float32))


def out_of_range(path):
    np.savez(path, vertices=np.zeros((3, 3), np.float32), triangles=np.full((1, 3), 3, np.uint32), normals=np.zeros((3, 3), np.float32))


def other_names(path):
    np.savez(path, points=np.zeros((3, 3), np.float32))


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncated, flipped_bit, empty, objects, out_of_range, other_names, a_folder])
def test_a_damaged_file_is_made_again(damage):
    first = light_mesh(*ball(3))
    (path,) = cache_folder().iterdir()
    damage(path)
    decimation._remembered.cache_clear()
    second = light_mesh(*ball(3))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert [file.name for file in cache_folder().iterdir()] == [path.name]  # nothing half-written stays behind
    assert path.is_dir() or decimation._read(path) is not None


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(light_mesh(*ball(3)).triangles)


def _in_a_process(folder, barrier, answers):
    os.environ["XDG_CACHE_HOME"] = str(folder)
    barrier.wait()
    answers.put(tuple(light_mesh(*ball())))


def test_processes_that_start_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_in_a_process, args=(tmp_path, barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert all((a == b).all() for mesh in found for a, b in zip(mesh, found[0], strict=True))
    assert [file.suffix for file in cache_folder().iterdir()] == [".npz"]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("wound", [1, -1])
def test_a_floor_is_two_triangles(axis, wound):
    vertices, triangles, uvs = grid()
    vertices, triangles = np.roll(vertices, axis, axis=1), triangles[:, ::wound]
    two = flat_rectangle(vertices, triangles, uvs)
    normal = [np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a]) for a, b, c in (*two, triangles[0])]
    assert two.shape == (2, 3) and two.dtype == np.uint32
    assert np.allclose(normal[0], normal[1]) and np.allclose(normal[0], 100 * normal[2])  # the same side, the whole area
    assert {tuple(vertices[i]) for i in two.ravel()} == {tuple(v) for v in vertices if sum(x in (0, 10) for x in v) == 2}


def test_what_is_no_plain_floor_stays():
    vertices, triangles, uvs = grid()
    hole, bump, seam, folded = triangles[1:], vertices.copy(), uvs.copy(), triangles.copy()
    bump[60, 2] += 0.1
    seam[60:] += 0.5
    folded[0] = folded[0, ::-1]
    turn = trimesh.transformations.rotation_matrix(0.3, [0, 0, 1])[:3, :3].astype(np.float32)
    for arguments in ((vertices, hole, uvs), (bump, triangles, uvs), (vertices, triangles, seam), (vertices, folded, uvs), (vertices @ turn, triangles, uvs)):
        assert flat_rectangle(*arguments) is None


def test_fields_are_what_is_on_disk():
    light_mesh(*ball(3))
    (path,) = cache_folder().iterdir()
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == set(Mesh._fields)
