"""What is read directly of one CPU scene is what ManiSkill says."""

import pytest
import torch

from stare_lit import keys
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.experts.maniskill import ManiSkillExpert


@pytest.mark.parametrize("task, held", [("StackCube-v1", "cubeA"), ("LiftPegUpright-v1", "peg"), ("PutCarrotOnPlateInScene-v1", None)])
def test_a_grasp_is_told_as_by_the_agent(task, held, simulated):
    env, expert, seen = ManiSkillEnv(simulated(task), observation="state"), ManiSkillExpert(task), set()
    td, simulator = env.reset(seed=1), env.simulator
    while not td["done"]:
        td = env.step(td.set(keys.ACTION_CHUNK, expert.act(env).reshape(1, 7)))["next"]
        actor = simulator.objs[simulator.source_obj_name] if held is None else getattr(simulator, held)
        for question in ((0.5, 85), (5.0, 85), (0.5, 12), (0.5, 1)):  # newtons, degrees
            asked = simulator.agent.is_grasping(actor, *question)
            assert torch.equal(asked, type(simulator.agent).is_grasping(simulator.agent, actor, *question))
            seen.add((question, bool(asked)))
    assert {((0.5, 85), True), ((0.5, 85), False), ((0.5, 1), False)} < seen
    env.close()
