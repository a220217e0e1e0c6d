"""The Bridge tasks: official layouts by seed, others that are none of them, and the photograph behind robot and objects."""

from math import pi
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.data.demonstrator import HOLD, DemoSettings, run_expert
from stare_lit.envs.factory import make_env, seeded_reset
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.robots import OFFICIAL_LAYOUTS, WIDOWX
from stare_lit.envs.seeds import SEED_RANGES, official_layout, split_seeds
from stare_lit.envs.transforms import RewardConfig
from stare_lit.experts.maniskill import ManiSkillExpert
from stare_lit.experts.widowx import ALIGNED, FUNNEL, HOVER, JOBS, LEFT, SHUT, TURNED, turn_to_grip

CARROT, SPOON, EGGPLANT = "PutCarrotOnPlateInScene-v1", "PutSpoonOnTableClothInScene-v1", "PutEggplantInBasketScene-v1"
OFFICIAL = SEED_RANGES["official"][0]


@pytest.fixture(scope="module", params=list(OFFICIAL_LAYOUTS))
def env(request, simulated):
    env = ManiSkillEnv(simulated(request.param), observation="state", terminate_on_success=False)
    yield env
    env.close()


def places(simulator):
    """[2, 3]: where object and target lie."""
    return torch.cat([simulator.objs[name].pose.p for name in simulator.obj_names])


def test_the_simulator_has_as_many_layouts_and_a_seed_for_each(env):
    simulator = env.simulator
    num = len(simulator.xyz_configs) * len(simulator.quat_configs)
    assert num == OFFICIAL_LAYOUTS[env.task]
    for layout in (0, num - 1):
        env.reset(seed=OFFICIAL + layout)
        wanted = simulator.xyz_configs[layout // len(simulator.quat_configs)]
        assert (places(simulator) - wanted)[:, :2].abs().max() < 0.01  # they settle a little
    with pytest.raises(ValueError, match=f"the official split has the seeds {OFFICIAL}..{OFFICIAL + num - 1}"):
        split_seeds("official", num + 1, task=env.task)
    if OFFICIAL + num < SEED_RANGES["official"][1]:  # beyond it begin seeds of no split
        with pytest.raises(ValueError, match=f"of which {env.task} has {num} layouts"):
            official_layout(env.task, OFFICIAL + num)


def test_other_seeds_give_other_layouts_again_the_same(env):
    seen = []
    for seed in (0, 1, 0):
        env.reset(seed=seed)
        seen.append(places(env.simulator))
    assert torch.equal(seen[0], seen[2]) and (seen[0] - seen[1])[0].norm() > 0.005


def test_drawn_layouts_are_none_of_the_official_ones(env):
    from stare_lit.envs.bridge import MIN_DISTANCE, MIN_TURN, draw_layout, turn_between

    simulator, generator = env.simulator, torch.Generator().manual_seed(0)
    rules = simulator.layout_rules
    drawn = [draw_layout(simulator.xyz_configs, simulator.quat_configs, generator, **rules) for _ in range(300)]
    for place, orientation in drawn:
        assert orientation.norm(dim=-1).sub(1).abs().max() < 1e-3 and (place[0] - place[1])[:2].norm() >= rules["min_gap"]
        moved = (simulator.xyz_configs - place)[..., :2].norm(dim=-1).amax(-1)
        turned = turn_between(simulator.quat_configs[:, 0], orientation[0])
        assert ((moved[:, None] >= MIN_DISTANCE) | (turned >= MIN_TURN)).all()
        assert (simulator.xyz_configs - place)[..., :2].abs().amax(-1).amin(0).le(torch.tensor(rules["spread"]) + 1e-6).all()
    assert torch.stack([place for place, _ in drawn])[:, 0, :2].std(0).min() > 0.005  # they spread


@pytest.mark.parametrize("seed", [11, 31, 36, 81, 84, 96])
def test_an_eggplant_that_slides_onto_an_official_place_is_put_elsewhere(seed, simulated):
    """The first layouts that these seeds draw differ from all official ones as drawn, but not at rest, or by a roll about the long axis alone."""
    from stare_lit.envs.bridge import MIN_DISTANCE, MIN_TURN, official_at_rest

    env = ManiSkillEnv(simulated(EGGPLANT), observation="state")
    env.reset(seed=seed)
    places, orientations = official_at_rest(env.simulator.official_kind)
    assert len(places) == len(orientations) == OFFICIAL_LAYOUTS[EGGPLANT]
    place, orientation = env.simulator.layout()
    headings = [Rotation.from_quat(q[0].numpy(), scalar_first=True).apply([1.0, 0.0, 0.0])[:2] for q in (orientation, *orientations)]  # of the long axis
    drawn, *official = [heading / np.linalg.norm(heading) for heading in headings]
    turned = np.arccos(np.clip(np.array(official) @ drawn, -1, 1))
    moved = (places - place)[..., :2].norm(dim=-1).amax(-1).numpy()
    assert ((moved >= MIN_DISTANCE) | (turned >= MIN_TURN - 1e-4)).all()
    env.close()


def test_a_roll_about_the_long_axis_is_no_other_layout():
    from stare_lit.envs.bridge import is_none_of, turn_between

    upright = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    rolled, turned = upright.clone(), upright.clone()
    rolled[0], turned[0] = torch.tensor([0.6, 0.8, 0.0, 0.0]), torch.tensor([0.8, 0.0, 0.0, 0.6])  # by 106 degrees about x, by 74 about the vertical
    places = torch.zeros(1, 2, 3)
    assert not is_none_of(places, upright[None], places[0], rolled) and is_none_of(places, upright[None], places[0], turned)
    assert turn_between(upright[0], turned[0]) == pytest.approx(2 * np.arccos(0.8), abs=1e-5)


def test_layouts_at_rest_are_none_of_the_official_ones_at_rest(env):
    from stare_lit.envs.bridge import is_none_of, official_at_rest

    official = official_at_rest(env.simulator.official_kind)
    for layout in (0, OFFICIAL_LAYOUTS[env.task] - 1):
        env.reset(seed=OFFICIAL + layout)
        place, orientation = env.simulator.layout()
        assert (official[0][layout] - place).abs().max() < 2e-3 and not is_none_of(*official, place, orientation)
    for seed in range(40):
        env.reset(seed=seed, exact=False)
        assert is_none_of(*official, *env.simulator.layout()), seed


def test_which_cube_is_turned_does_not_tell_which_one_to_grasp(env):
    from stare_lit.envs.bridge import draw_layout, turn_between

    simulator, generator = env.simulator, torch.Generator().manual_seed(0)
    rules = simulator.layout_rules
    drawn = [draw_layout(simulator.xyz_configs, simulator.quat_configs, generator, **rules)[1] for _ in range(300)]
    of_object, of_target = (torch.stack([turn_between(simulator.quat_configs[:, i], turn[i]).min() for turn in drawn]).mean() for i in (0, 1))
    if env.task.startswith("Stack"):
        assert (of_object - of_target).abs() < 0.05 and of_target > 0.2  # rad
    else:
        assert of_target < 1e-3 < of_object  # a plate, a cloth, a basket: nothing to confuse the object with


@pytest.mark.parametrize(("task", "gap"), [(CARROT, 0.1125), ("PutSpoonOnTableClothInScene-v1", 0.12)])
def test_long_things_start_clear_of_their_target(task, gap, simulated):
    env = ManiSkillEnv(simulated(task), observation="state")
    assert env.simulator.layout_rules["min_gap"] == pytest.approx(gap)
    env.close()


def test_the_arm_of_the_last_episode_is_out_of_the_way_when_things_are_set_down(simulated):
    env = ManiSkillEnv(simulated(CARROT), observation="state", terminate_on_success=False)
    env.reset(seed=5)
    alone = places(env.simulator)
    env.reset(seed=6)
    for _ in range(12):  # open fingers onto the table, about where the next carrot will lie
        way = alone[0] - env.simulator.agent.robot.links_map[env.robot.tool].pose.p[0]
        env.step(_towards(way))
    assert env.simulator.agent.robot.links_map[env.robot.tool].pose.p[0, 2] < alone[0, 2] + 0.06
    env.reset(seed=5, exact=False)
    assert (places(env.simulator) - alone).norm(dim=-1).max() < 2e-3
    env.close()


def _towards(way):
    from tensordict import TensorDict

    return TensorDict({keys.ACTION_CHUNK: torch.cat([way.clamp(-0.05, 0.05), torch.zeros(3), torch.ones(1)])[None]}, [])


def test_an_object_that_is_thrown_out_of_the_sink_is_put_elsewhere(simulated):
    env = ManiSkillEnv(simulated(EGGPLANT), observation="state")
    for seed in (1, 26, 1):  # the first layout that 26 draws throws it metres high
        td = env.reset(seed=seed, exact=False)
        assert (places(env.simulator)[0, 2] - 0.93).abs() < 0.05 and td[keys.SIGNALS]["lift"].abs() < 1e-6
    env.close()


def test_a_turn_is_the_angle_between_two_orientations():
    from stare_lit.envs.bridge import turn_between

    straight, quarter = torch.tensor([1.0, 0, 0, 0]), torch.tensor([np.cos(pi / 4), 0, 0, np.sin(pi / 4)], dtype=torch.float32)
    assert float(turn_between(straight, quarter)) == pytest.approx(pi / 2, abs=1e-5)
    assert float(turn_between(straight, -straight)) == pytest.approx(0, abs=1e-3)  # the same orientation


def test_the_demonstrator_changes_the_side_to_which_it_turns_far_from_every_official_layout(env):
    if not JOBS[env.task].turns:
        pytest.skip("its demonstrator does not turn")  # a cube is gripped as it lies
    simulator, arm = env.simulator, env.simulator.agent.controller.controllers["arm"]
    for layout in range(OFFICIAL_LAYOUTS[env.task]):
        env.reset(seed=OFFICIAL + layout, exact=False)
        turn = turn_to_grip(simulator.objs[simulator.source_obj_name].pose, arm.root_link.pose * arm._target_pose)
        assert LEFT - pi + pi / 9 < turn < LEFT - pi / 9, layout


def test_to_which_side_the_tool_turns_is_the_objects_alone_to_say():
    def about_the_vertical(angle: float) -> SimpleNamespace:
        return SimpleNamespace(q=torch.tensor([[np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]], dtype=torch.float32))

    for degrees, wanted in ((0, 0), (44, 44), (46, -134), (91, -89), (-91, -91), (136, -44), (180, 0)):  # an object has no front
        for pushed in (-120, -69, 0, 20, 69):  # the fingers open along -y at the start: half a turn
            turn = turn_to_grip(about_the_vertical(degrees * pi / 180), about_the_vertical(pi + pushed * pi / 180))
            assert np.degrees(turn) + pushed == pytest.approx(wanted, abs=1e-3), (degrees, pushed)


def test_a_spoon_is_held_towards_its_handle_and_does_not_slip(simulated):
    env = ManiSkillEnv(simulated(SPOON), observation="state", terminate_on_success=False)
    data, table = run_expert(env, ManiSkillExpert(SPOON), [5005, 5007, 5008, 5009, 5015, 5020], hold=HOLD)  # gripped at its middle it slips in all of these
    env.close()
    assert table["success"].all()
    for episode in data.split(table["length"].tolist()):
        grasped = episode[keys.next_(keys.SIGNALS)]["grasped"].flatten()
        assert (grasped.diff() != 0).sum() == 2  # once taken, once let go


def test_the_gripper_comes_down_once_the_tool_itself_is_above_the_eggplant(simulated):
    """The pose that the tool is told is there earlier: going down with that, one finger comes down on the eggplant, which rolls away."""
    env = ManiSkillEnv(simulated(EGGPLANT), observation="state", terminate_on_success=False)
    simulator, late = env.simulator, 0
    for seed in (1, 3, 7, 8):
        expert, td = ManiSkillExpert(EGGPLANT), env.reset(seed=seed)
        expert.reset()
        source, arm = simulator.objs[simulator.source_obj_name], simulator.agent.controller.controllers["arm"]
        while (action := expert.act(env))[-1] > 0:  # until the fingers close
            told, tool = arm.root_link.pose * arm._target_pose, simulator.agent.robot.links_map[WIDOWX.tool].pose
            beside = (source.pose.p - tool.p)[0, :2].norm()
            if action[2] < 0 and told.p[0, 2] + action[2] - source.pose.p[0, 2] < HOVER / 2:
                assert beside < ALIGNED + FUNNEL / 2 + 1e-4 and abs(turn_to_grip(source.pose, tool)) < TURNED
            late += bool((source.pose.p - told.p)[0, :2].norm() < ALIGNED < beside)
            td = env.step(td.set(keys.ACTION_CHUNK, action[None]))["next"].clone()
    env.close()
    assert late > 4  # the two do differ


def test_grasped_is_live_where_the_tasks_own_flag_stays(env):
    expert, td = ManiSkillExpert(env.task), env.reset(seed=3)
    while not (td[keys.SIGNALS, "grasped"] and td[keys.SIGNALS, "lift"] > 0.02):
        td = env.step(td.set(keys.ACTION_CHUNK, expert.act(env)[None]))["next"].clone()
    for _ in range(4):
        td = env.step(td.set(keys.ACTION_CHUNK, torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]])))["next"].clone()
    assert td[keys.SIGNALS, "grasped"] == 0 and td[keys.SIGNALS, "released"] == 1
    assert bool(env.simulator.episode_stats["is_src_obj_grasped"])


def test_a_demonstration_shows_what_to_do_after_success(env):
    settings = DemoSettings(env.task)
    data, table = run_expert(env, ManiSkillExpert(env.task), [4], hold=settings.hold)
    success = data[keys.next_(keys.SUCCESS)].flatten()
    assert table["success"].all() and int(table["length"]) < env.max_episode_steps
    assert success[-HOLD - 1 :].all() and not success[-HOLD - 2]
    last = data[keys.next_(keys.SIGNALS)][-1]
    assert last["released"] == 1 and last["tcp_to_object"] > 0.04


def test_a_policy_that_sees_is_also_told_where_the_arm_was_sent(simulated):
    """An action goes on from there, not from the tool: without it the same picture and joints ask for actions that differ by the lag."""
    env = ManiSkillEnv(simulated(CARROT), image_size=64, terminate_on_success=False)
    told = [env.reset(seed=3)[keys.STATE][-7:]]
    base, tool = (env.simulator.agent.robot.links_map[name].pose for name in ("base_link", env.robot.tool))
    torch.testing.assert_close(told[0][:3], (base.inv() * tool).p[0], atol=1e-3, rtol=0)
    action = torch.tensor([0.03, -0.02, -0.03, 0.0, 0.0, 0.0, 1.0])
    for _ in range(4):
        stepped = env.step(TensorDict({keys.ACTION_CHUNK: action[None]}))["next"]
        told.append(stepped[keys.STATE][-7:])
        torch.testing.assert_close(told[-1][:3] - told[-2][:3], action[:3], atol=1e-5, rtol=0)
    base, tool = (env.simulator.agent.robot.links_map[name].pose for name in ("base_link", env.robot.tool))
    assert ((base.inv() * tool).p[0] - told[-1][:3]).norm() > 0.005
    env.close()


def test_an_arm_that_starts_elsewhere_stays_there(simulated):
    env = ManiSkillEnv(simulated(CARROT), observation="state", terminate_on_success=False)
    usual = env.reset(seed=3)[keys.STATE][:8]
    env.perturbation = Perturbation(joint_noise=0.1)
    start = env.reset(seed=3)[keys.STATE][:8]
    expected = torch.from_numpy(env.perturbation.joint_offsets(3, 6))
    torch.testing.assert_close(start - usual, torch.cat([expected, torch.zeros(2)]), atol=1e-5, rtol=0)
    arm = env.simulator.agent.controller.controllers["arm"]
    base, tool = (env.simulator.agent.robot.links_map[name].pose for name in ("base_link", env.robot.tool))
    torch.testing.assert_close(arm._target_pose.p, (base.inv() * tool).p, atol=1e-3, rtol=0)  # actions go on from the new place
    stepped = env.step(TensorDict({keys.ACTION_CHUNK: torch.tensor([[0.0] * 6 + [1.0]])}))["next"]
    assert (stepped[keys.STATE][:6] - start[:6]).abs().max() < 0.02
    env.close()


def test_a_demonstrator_goes_on_from_a_gripper_that_slipped(env):
    data, table = run_expert(env, ManiSkillExpert(env.task), [4, 5, 6], gripper_noise=0.05, hold=HOLD)
    shut = (data[keys.STATE][:, 6:8] < SHUT).all(-1) & (data[keys.SIGNALS]["grasped"] == 0)
    assert shut.any() and (data[keys.ACTION][shut, 6] > 0).all()  # what a policy without memory can follow
    assert table["success"].all()


def test_a_demonstrator_goes_on_from_an_arm_that_was_jolted(env):
    data, table = run_expert(env, ManiSkillExpert(env.task), [4, 5, 6], arm_noise=0.1, hold=HOLD)
    assert table["success"].all()
    assert bool(data[keys.ACTION][:, 5].any()) != env.task.startswith("Stack")  # how a cube lies, a small camera does not show


def test_whoever_gripped_or_let_go_the_demonstrator_goes_on_alike(env):
    """A policy without memory sees that it holds the object, or that it lies where it belongs, not who did it."""
    expert, td, checked = ManiSkillExpert(env.task), env.reset(seed=3), set()
    while not td[keys.DONE]:
        action = expert.act(env)
        if td[keys.SIGNALS, "grasped"] or (td[keys.SIGNALS, "success"] and td[keys.SIGNALS, "released"]):
            fresh = ManiSkillExpert(env.task).act(env)
            assert fresh[6] == action[6]
            if td[keys.SIGNALS, "grasped"]:
                torch.testing.assert_close(fresh, action)
            checked.add("grasped" if td[keys.SIGNALS, "grasped"] else "placed")
        td = env.step(td.set(keys.ACTION_CHUNK, action[None]))["next"].clone()
    assert checked == {"grasped", "placed"}


@pytest.fixture(scope="module")
def pictures(simulated):
    """Of two tasks with different photographs in one process: the environments, each after a reset."""
    envs = [ManiSkillEnv(simulated(task), image_size=64, visuals="exact") for task in (CARROT, EGGPLANT)]
    yield [(env, env.reset(seed=OFFICIAL)[keys.IMAGE].permute(1, 2, 0).numpy()) for env in envs]
    for env in envs:
        env.close()


def test_each_task_keeps_its_own_photograph_behind_robot_and_objects(pictures):
    import cv2

    for env, image in pictures:
        path = env.simulator.rgb_overlay_paths[env.robot.camera]
        photograph = cv2.cvtColor(cv2.resize(cv2.imread(path), (64, 64)), cv2.COLOR_BGR2RGB)
        behind = (image == photograph).all(-1)
        assert 0.5 < behind.mean() < 0.99  # the rest is robot and objects
    assert (pictures[0][1] != pictures[1][1]).any(-1).mean() > 0.9


def test_a_small_picture_is_the_official_one_squeezed(pictures, simulated):
    env = ManiSkillEnv(simulated(CARROT), image_size=256, visuals="exact")
    large = env.reset(seed=OFFICIAL)[keys.IMAGE].float()
    env.close()
    squeezed = torch.nn.functional.avg_pool2d(large, 4).permute(1, 2, 0).numpy()
    assert np.abs(squeezed - pictures[0][1]).mean() < 12  # of 255; edges differ by their sampling


def test_the_official_picture_is_the_benchmarks(pictures, simulated):
    env = ManiSkillEnv(simulated(CARROT), picture="official", visuals="exact")
    image = env.reset(seed=OFFICIAL)[keys.IMAGE]
    intrinsic = env.simulator.scene.sensors[env.robot.camera].camera.get_intrinsic_matrix()[0]
    env.close()
    assert image.shape == (3, 480, 640) and intrinsic[0, 0] == pytest.approx(623.588) and intrinsic[1, 2] == pytest.approx(239.545)
    from stare_lit.models.vla.images import resize

    squeezed = resize(image, 64, "lanczos").permute(1, 2, 0).numpy()
    assert np.abs(squeezed.astype(float) - pictures[0][1]).mean() < 12  # of 255: drawn small, edges are sharper


def test_light_meshes_hardly_change_a_picture(pictures, simulated):
    for task, (_, exact) in zip((CARROT, EGGPLANT), pictures, strict=True):
        env = ManiSkillEnv(simulated(task), image_size=64, visuals="light")
        light = env.reset(seed=OFFICIAL)[keys.IMAGE].permute(1, 2, 0).numpy()
        env.close()
        assert np.abs(exact.astype(int) - light).mean() < 1  # of 255


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": RewardConfig(mode="dense")}, "reward.mode='dense': PutCarrotOnPlateInScene-v1 has no dense reward"),
        ({"picture": "official", "observation": "state"}, "picture='official': PutCarrotOnPlateInScene-v1 with observation='state' has none"),
        ({"cameras": ("base_camera",)}, r"cameras=\['base_camera'\]: PutCarrotOnPlateInScene-v1 has \['3rd_view_camera'\]"),
    ],
)
def test_refusals(settings, message, simulated):
    with pytest.raises(ValueError, match=message):
        make_env(simulated(CARROT), 1, num_workers=0, **settings)


def test_official_seeds_of_a_task_without_fixed_layouts():
    with pytest.raises(ValueError, match="split='official': PushCube-v1 has no fixed layouts; choose the split 'test'"):
        split_seeds("official", task="PushCube-v1")
    assert split_seeds("official", task=CARROT) == list(range(OFFICIAL, OFFICIAL + 24))
    assert official_layout("PushCube-v1", 5) is None
    with pytest.raises(ValueError, match="seed=3000000: of the official split, of which PushCube-v1 has 0 layouts"):
        official_layout("PushCube-v1", OFFICIAL)


def test_a_pool_of_processes_resets_to_official_layouts(simulated):
    env = make_env(simulated(CARROT), 2, num_workers=1, observation="state")
    td = seeded_reset(env, split_seeds("official", 2, task=CARROT))
    env.close()
    assert td[keys.EPISODE_SEED].tolist() == [OFFICIAL, OFFICIAL + 1]
    assert td[keys.INSTRUCTION][0] == "put carrot on plate"
