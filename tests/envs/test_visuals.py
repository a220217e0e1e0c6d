"""Light meshes: fewer triangles, the same physics to the bit, nearly the same picture."""

import pytest
import torch
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.visuals import LIGHT_TRIANGLES, lighten
from stare_lit.experts.maniskill import ManiSkillExpert

pytestmark = pytest.mark.usefixtures("vulkan")

MEAN_DIFFERENCE = 2.0  # of 255, over an image of 64 px: flat shading and coarse outlines of the robot
STRONG_DIFFERENCE = 64  # of 255 in a channel; so different may be ...
STRONG_SHARE = 0.01  # ... one channel value in a hundred, on the outlines


def triangles(simulator):
    import sapien.render

    bodies = [entity.find_component_by_type(sapien.render.RenderBodyComponent) for scene in simulator.scene.sub_scenes for entity in scene.entities]
    shapes = [shape for body in bodies if body is not None for shape in body.render_shapes]
    return sum(len(part.triangles) for shape in shapes if isinstance(shape, sapien.render.RenderShapeTriangleMesh) for part in shape.parts)


@pytest.fixture(scope="module")
def episodes():
    """The expert's first 12 steps on PushCube-v1 under both kinds of meshes, with a seeded reset (which rebuilds the scene): [12] each, and triangles."""
    found = {}
    for visuals in ("exact", "light"):
        env = ManiSkillEnv("PushCube-v1", visuals=visuals)
        expert, td, steps = ManiSkillExpert(env.task), env.reset(seed=6), []
        while not steps or len(steps) < 12 and not steps[-1]["next", "done"]:
            steps.append(env.step(td.set(keys.ACTION_CHUNK, expert.act(env).reshape(1, 7))).clone())
            td = step_mdp(steps[-1])
        count = triangles(env.simulator)
        again = lighten(env.simulator.scene.sub_scenes) if visuals == "light" else None
        found[visuals] = (torch.stack(steps), count, again, triangles(env.simulator))
        env.close()
    return found


def test_physics_is_untouched(episodes):
    exact, light = episodes["exact"][0], episodes["light"][0]
    assert len(exact) == len(light) >= 8
    for part in (keys.STATE, keys.SIGNALS, keys.next_(keys.STATE), keys.next_(keys.SIGNALS), keys.ACTION_CHUNK):
        assert (exact[part] == light[part]).all(), part


def test_pictures_are_close(episodes):
    exact, light = (episodes[visuals][0]["next", "observation", "image"].float() for visuals in ("exact", "light"))
    difference = (exact - light).abs()
    assert 0 < difference.mean() < MEAN_DIFFERENCE
    assert (difference > STRONG_DIFFERENCE).float().mean() < STRONG_SHARE


def test_far_fewer_triangles_also_after_a_rebuild(episodes):
    assert episodes["exact"][1] > 100_000
    assert episodes["light"][1] < 100 * LIGHT_TRIANGLES


def test_twice_changes_nothing(episodes):
    _, before, replaced, after = episodes["light"]
    assert replaced == 0 and before == after
