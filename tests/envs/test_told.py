"""Scenes under the instruction of another task: what was told is measured, so that to follow and to do nothing are told apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.cli.perturbation import read_perturbations
from stare_lit.envs.factory import make_env
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.seeds import split_seeds
from stare_lit.envs.signals import TOLD_SUCCESS, TOLD_VIEWS
from stare_lit.envs.toy import ToyEnv
from stare_lit.evaluation.evaluate import evaluate_policy
from stare_lit.experts.maniskill import CONTROLLERS
from stare_lit.experts.memory import Memory
from stare_lit.experts.toy import ToyExpert

ROOT = Path(__file__).parents[2]
SWAPPED = read_perturbations(str(ROOT / "configs/language/swapped.yaml"))["swapped"]
TOY = "Toy-v0"


class Toy:
    """A scripted policy of the toy: to the pad that the scene wants, to the one that is told, or nowhere."""

    chunk_size = 1

    def __init__(self, env, goal):
        self.env, self.goal = env, goal

    def act(self, tensordict, *, temperature, value=False):
        state = self.env.base_env.world_state
        if self.goal == "told":
            other = replace(state, instruction=1 - state.instruction)
            state = replace(other, success=tensordict[keys.signal(TOLD_SUCCESS)] > 0.5)
        action = ToyExpert().action(state) if self.goal != "none" else torch.zeros(len(state.steps), 7)
        return tensordict.set(keys.ACTION_CHUNK, action[:, None])


@pytest.mark.parametrize(("goal", "own", "told"), [("told", 0, 8), ("own", 8, 0), ("none", 0, 0)])
def test_the_toy_told_the_other_pad(goal, own, told):
    env = make_env(TOY, 8, image_size=8, terminate_on_success=False, perturbation=SWAPPED)
    result = evaluate_policy(Toy(env, goal), env, split_seeds("validation", 8), task=TOY)
    env.close()
    assert (result.once.successes, result.told.successes) == (own, told)
    assert result.metrics()["told_success"] == told / 8


@pytest.mark.parametrize("words", [{}, {TOY: ("to the red one", "to the blue one")}, {TOY: ToyEnv.instructions}], ids=["own", "other words", "the same"])
def test_words_that_name_no_other_goal_are_not_measured_by_one(words):
    env = make_env(TOY, 2, image_size=8, terminate_on_success=False, perturbation=Perturbation(instructions=words))
    result = evaluate_policy(Toy(env, "own"), env, split_seeds("validation", 2), task=TOY)
    env.close()
    assert result.told is None and "told_success" not in result.metrics()


@pytest.fixture(scope="module", params=sorted(TOLD_VIEWS))
def scene(request, simulated):
    env = ManiSkillEnv(simulated(request.param), observation="state", terminate_on_success=False, perturbation=SWAPPED)
    yield env
    env.close()


@pytest.mark.parametrize(("goal", "own", "told"), [("told", 0.0, 1.0), ("own", 1.0, 0.0), ("none", 0.0, 0.0)])
def test_a_scene_under_the_words_of_the_other_task(scene, goal, own, told):
    """What counts is how it was at some step with the pushed cube, which slides on, and at the last one with a stack."""
    other, view = TOLD_VIEWS[scene.task]
    controller, memory = CONTROLLERS[other if goal == "told" else scene.task], Memory()
    td, seen = scene.reset(seed=2), []
    while not td[keys.DONE]:
        simulator = view(scene.simulator) if goal == "told" else scene.simulator
        action = torch.zeros(7) if goal == "none" else controller(simulator, memory)
        td = step_mdp(scene.step(td.set(keys.ACTION_CHUNK, action.reshape(1, 7))))
        seen.append(torch.stack([td[keys.signal("success")], td[keys.signal(TOLD_SUCCESS)]]))
    seen = torch.stack(seen)
    assert (seen[-1] if scene.robot.judged_at_end else seen.amax(0)).tolist() == [own, told]


@pytest.mark.parametrize("scene", [task for task in TOLD_VIEWS if task.startswith("Stack")], indirect=True)
def test_to_ask_for_the_other_stack_leaves_what_the_benchmark_counts(scene, monkeypatch):
    scene.reset(seed=2)
    simulator, view = scene.simulator, TOLD_VIEWS[scene.task][1]
    monkeypatch.setattr(simulator.agent, "is_grasping", lambda thing: torch.tensor([True]))
    view(simulator).evaluate()
    assert not simulator.consecutive_grasp.any() and not simulator.episode_stats["is_src_obj_grasped"].any()
    simulator.evaluate()
    assert simulator.consecutive_grasp.all() and simulator.episode_stats["is_src_obj_grasped"].all()
