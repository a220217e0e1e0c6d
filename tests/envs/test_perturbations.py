"""Perturbations without a simulator: what is refused, what is drawn from a seed, and the toy, where each changes what it says and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stare_lit import keys
from stare_lit.cli.perturbation import read_perturbations, split_by_fit
from stare_lit.envs.factory import make_env, seeded_reset
from stare_lit.envs.perturbations import DRAWN, IN_TOY, MAX_DISTRACTORS, TABLETOP, TOY, Perturbation, free_places
from stare_lit.envs.signals import INSTRUCTIONS, instructions_of
from stare_lit.models.vla import VLAPolicy

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "perturbations").glob("*.yaml"))
PUSH = "PushCube-v1"

LIMIT = (1.0,) * 7


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"camera_translation": (0.0, 2.0, 0.0)}, r"camera_translation=\(0.0, 2.0, 0.0\)"),
            ({"light": (1.0, 1.0)}, "light="),
            ({"table_colour": (0.0, 255.0, 0.0)}, "table_colour=.*from 0 to 1"),
            ({"num_distractors": MAX_DISTRACTORS + 1}, "num_distractors=7"),
            ({"object_scale": 0.0}, "object_scale=0.0"),
            ({"joint_noise": 1.0}, "joint_noise=1.0"),
            ({"action_noise": float("nan")}, "action_noise=nan"),
            ({"disguised": 1.5}, "disguised=1.5"),
            ({"instructions": {PUSH: "push"}}, "instructions.*list of texts"),
            ({"instructions": {PUSH: (" ",)}}, "none of them empty"),
        ],
    )
    def test_values(self, values, message):
        with pytest.raises(ValueError, match=message):
            Perturbation(**values)

    @pytest.mark.parametrize(
        ("task", "values", "settings", "message"),
        [
            (TOY, {"joint_noise": 0.1}, {}, "Toy-v0 has no joint_noise"),
            (TOY, {"camera_translation": (0.1, 0.0, 0.0)}, {}, "moves left and up only"),
            (TOY, {"num_distractors": 1}, {"observation": "state"}, "num_distractors cannot be seen"),
            (PUSH, {"light": (0.5, 0.5, 0.5)}, {"observation": "state"}, "light cannot be seen"),
            (PUSH, {"instructions": {TOY: ("a", "b")}}, {}, "0 of PushCube-v1, which has 1"),
            (PUSH, {"disguised": 0.5}, {"observation": "state"}, "disguised cannot be seen"),
            ("StackCube-v1", {"disguised": 0.5}, {}, "disguised=0.5: no other task shares the scene of StackCube-v1"),
            ("StackCube-v1", {"object_scale": 1.1}, {}, "object_scale=1.1: StackCube-v1"),
        ],
    )
    def test_tasks(self, task, values, settings, message):
        with pytest.raises(ValueError, match=message):
            make_env(task, 1, perturbation=Perturbation(**values), **settings)

    def test_a_task_without_table_takes_what_needs_none(self):
        own = ("put it there",)
        Perturbation(joint_noise=0.1, action_noise=0.1, instructions={"Other-v1": ("place it there",)}).check("Other-v1", own)
        with pytest.raises(ValueError, match="Other-v1 has no table_colour"):
            Perturbation(table_colour=(0.0, 0.0, 0.0)).check("Other-v1", own)

    def test_many_scenes_in_one_simulator(self):
        Perturbation(action_noise=0.1).check(PUSH, INSTRUCTIONS[PUSH], num_envs=2)
        with pytest.raises(ValueError, match="joint_noise needs one scene a simulator"):
            Perturbation(joint_noise=0.1).check(PUSH, INSTRUCTIONS[PUSH], num_envs=2)

    def test_a_plain_dictionary(self):
        with pytest.raises(ValueError, match="perturbation=.*stare eval has --perturbation"):
            make_env(TOY, 1, perturbation={"light": [1, 1, 1]})

    def test_files(self, in_root, tmp_path):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text("camera_shift: 1\n")
        for entries, message in (("nowhere", "ones? that ships? .*camera"), (str(wrong), "camera_shift"), ([str(tmp_path / "none.yaml")], "is not a file")):
            with pytest.raises(ValueError, match=message):
                read_perturbations(entries)
        wrong.write_text("light: [1, 1\n")
        with pytest.raises(ValueError, match="wrong.yaml"):
            read_perturbations(str(wrong))
        wrong.write_text("joint_noise: 9.0\n")
        with pytest.raises(ValueError, match="wrong.yaml.*joint_noise=9.0"):
            read_perturbations(str(wrong))


class TestShipped:
    def test_each_changes_one_thing(self, in_root):
        found = read_perturbations("all")
        assert list(found) == SHIPPED and len(found) == 9
        changed = [name for each in found.values() for name in each.changes]
        assert len(changed) == len(set(changed)) and set(changed) == set(Perturbation.__dataclass_fields__) - {
            "disguised"
        }  # of training: swapped words ask for the same
        assert read_perturbations(["camera", "configs/perturbations/table.yaml"]) == {name: found[name] for name in ("camera", "table")}

    @pytest.mark.parametrize("task", TABLETOP)
    def test_every_task_on_a_table_takes_them_all(self, in_root, task):
        assert split_by_fit(read_perturbations("all"), task, "image") == (read_perturbations("all"), {})

    def test_the_toy_and_states_take_some(self, in_root):
        fitting, reasons = split_by_fit(read_perturbations("all"), TOY, "image")
        assert set(fitting) == {"camera", "distractors", "object_colour", "action_noise", "instruction"} - {"camera"}
        assert "camera_rotation" in reasons["camera"]
        fitting, _ = split_by_fit(read_perturbations("all"), PUSH, "state")
        assert set(fitting) == {"distractors", "object_size", "robot_pose", "action_noise", "instruction"}

    @pytest.mark.parametrize("task", [*TABLETOP, TOY])
    def test_other_words_are_other_tokens_that_the_shipped_policy_can_read(self, in_root, task):
        prompts = VLAPolicy.from_pretrained("policies/push_cube_sft").prompts
        own, other = instructions_of(task), read_perturbations("instruction")["instruction"].instructions_of(task, instructions_of(task))
        assert len(set(own) | set(other)) == 2 * len(own)
        assert not (prompts(own) == prompts(other)).all(-1).any()

    def test_no_word_is_unknown_to_the_shipped_tokenizer(self, in_root):
        prompts = VLAPolicy.from_pretrained("policies/push_cube_sft").prompts
        texts = [text for table in read_perturbations("instruction")["instruction"].instructions.values() for text in table]
        assert len(texts) == 11 and not (prompts(texts) == prompts._tokenizer.token_to_id("<unk>")).any()


class TestDraws:
    def test_noise_depends_on_seed_and_step_alone(self):
        noisy, chunk = Perturbation(action_noise=0.1), torch.zeros(2, 4, 7)
        whole = noisy.disturbed(chunk, torch.tensor([3, 4]), torch.tensor([0, 8]), LIMIT)
        assert torch.equal(whole[:, 2:], noisy.disturbed(chunk[:, 2:], torch.tensor([3, 4]), torch.tensor([2, 10]), LIMIT))
        assert not torch.equal(whole[0], whole[1]) and (whole[..., 6] == 0).all() and (whole[..., :6] != 0).all()
        assert noisy.disturbed(chunk + 1, torch.tensor([3, 4]), torch.tensor([0, 8]), LIMIT).max() == 1
        many = noisy.disturbed(torch.zeros(1, 2000, 7), torch.tensor([5]), torch.tensor([0]), LIMIT)[..., :6]
        assert many.std() == pytest.approx(0.1, rel=0.05)
        assert Perturbation().disturbed(chunk, torch.tensor([3, 4]), torch.tensor([0, 8]), LIMIT) is chunk

    def test_disguises_a_share_of_the_seeds(self):
        drawn = [Perturbation(disguised=0.3).disguises(seed) for seed in range(2000)]
        assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)
        assert not any(Perturbation().disguises(seed) for seed in range(100)) and all(Perturbation(disguised=1.0).disguises(seed) for seed in range(100))

    def test_joints(self):
        noisy = Perturbation(joint_noise=0.1)
        drawn = np.array([noisy.joint_offsets(seed, 7) for seed in range(200)])
        assert np.abs(drawn).max() <= 0.1 and drawn.std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
        assert np.array_equal(noisy.joint_offsets(3, 7), drawn[3])

    def test_places_by_hand(self):
        lines = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.5], [0.0, 0.5]]])  # the second is a point
        places = free_places(np.random.default_rng(0), 6, lines, low=(-0.5, -0.5), high=(1.5, 1.0), clearance=0.3, gap=0.2)
        for x, y in places:
            beyond = max(-x, 0.0, x - 1.0)
            assert np.hypot(beyond, y) >= 0.3 and np.hypot(x, y - 0.5) >= 0.3
        apart = np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(6, dtype=bool)]
        assert apart.min() >= 0.2 and places.min() >= -0.5
        with pytest.raises(RuntimeError, match="num_distractors=2: only 0 find"):
            free_places(np.random.default_rng(0), 2, lines, low=(0, 0), high=(1, 0.2), clearance=0.3, gap=0.2)


def toy(num_envs=3, **values):
    return make_env(TOY, num_envs, chunk_size=2, perturbation=Perturbation(**values))


def run(env, steps=4):
    """Observations from seeds 5, 6, ... on: [steps + 1, N, ...]."""
    td, generator = seeded_reset(env, range(5, 5 + env.batch_size[0])), torch.Generator().manual_seed(0)
    seen = [td.clone()]
    for _ in range(steps):
        td = env.step(td.set(keys.ACTION_CHUNK, torch.rand(*env.batch_size, 2, 7, generator=generator) * 2 - 1))["next"]
        seen.append(td.clone())
    return torch.stack([each.select(keys.OBSERVATION, keys.SIGNALS, keys.INSTRUCTION_ID) for each in seen]), seen[0][keys.INSTRUCTION]


TOY_VALUES = {
    "camera_translation": (0.0, 0.025, 0.0125),
    "light": (0.5, 0.5, 0.4),
    "table_colour": (0.1, 0.2, 0.3),
    "num_distractors": 3,
    "object_colour": (1.0, 0.0, 1.0),
    "action_noise": 0.2,
    "instructions": {TOY: ("to the red one", "to the blue one")},
}


class TestToy:
    def test_all_are_here(self):
        assert set(TOY_VALUES) == IN_TOY

    @pytest.mark.parametrize("name", TOY_VALUES)
    def test_changes_what_it_says_and_nothing_else(self, name):
        (plain, own), (other, said) = run(toy()), run(toy(**{name: TOY_VALUES[name]}))
        drawn = name in DRAWN | {"num_distractors"}
        assert (plain[keys.IMAGE] != other[keys.IMAGE]).flatten(2).any(-1).all() == drawn
        assert torch.equal(plain[0][keys.STATE], other[0][keys.STATE])
        assert torch.equal(plain[keys.STATE], other[keys.STATE]) == (name != "action_noise")
        assert (list(own) != list(said)) == (name == "instructions")
        again, _ = run(toy(**{name: TOY_VALUES[name]}))
        assert (other == again).all()

    def test_the_camera_shifts_the_picture(self):
        pixel = 0.4 / 32
        plain, _ = run(toy())
        left, _ = run(toy(camera_translation=(0.0, 2 * pixel, 0.0)))
        up, _ = run(toy(camera_translation=(0.0, 0.0, pixel)))
        assert (plain[keys.IMAGE][..., :-2].int() - left[keys.IMAGE][..., 2:].int()).abs().max() <= 1  # what is seen moves to the right
        assert (plain[keys.IMAGE][..., :-1, :].int() - up[keys.IMAGE][..., 1:, :].int()).abs().max() <= 1  # and down

    def test_distractors_belong_to_their_episode(self):
        env = toy(num_distractors=3)
        first = seeded_reset(env, [5, 6, 7])[keys.IMAGE].clone()
        env.step(seeded_reset(env, [7, 6, 5]).set(keys.ACTION_CHUNK, torch.ones(3, 2, 7)))
        again = env.reset(seeded_reset(env, [7, 6, 5]).set("_reset", torch.tensor([[True], [False], [False]])), seed=[5])
        assert torch.equal(again[keys.IMAGE][0], first[0]) and torch.equal(again[keys.IMAGE][1], first[1])

    def test_they_always_find_a_place(self):
        seeded_reset(toy(200, num_distractors=MAX_DISTRACTORS), range(200))
