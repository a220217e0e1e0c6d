"""Stage labels on trajectories that nobody here wrote: ManiSkill's own motion planners (Panda, joint positions, slower than the limit of an episode)."""

import gymnasium
import pytest
import torch

from stare_lit.envs.signals import SIGNALS
from stare_lit.stages.calculator import potential, stage_error
from stare_lit.stages.separator import separate
from stare_lit.stages.tasks import get_spec

SOLUTIONS = {
    "PushCube-v1": "solvePushCube",
    "PullCube-v1": "solvePullCube",
    "StackCube-v1": "solveStackCube",
    "LiftPegUpright-v1": "solveLiftPegUpright",
}
SEEDS = range(5)


class Measured(gymnasium.Wrapper):
    """Keeps the signals of every state of the present episode."""

    def __init__(self, env, task):
        super().__init__(env)
        self.measure, self.height = SIGNALS[task]

    def reset(self, **arguments):
        result = self.env.reset(**arguments)
        self.start, self.states = self.height(self.unwrapped), []
        self.note()
        return result

    def step(self, action):
        result = self.env.step(action)
        self.note()
        return result

    def note(self):
        found = self.measure(self.unwrapped, self.start) | {"success": self.unwrapped.evaluate()["success"]}
        self.states.append({name: value[0].float() for name, value in found.items()})


@pytest.mark.parametrize("task", SOLUTIONS)
def test_a_planners_stages_come_in_order(task, simulated):
    import mani_skill.examples.motionplanning.panda.solutions as solutions

    env = gymnasium.make(simulated(task), obs_mode="none", control_mode="pd_joint_pos", sim_backend="physx_cpu", render_backend="none").unwrapped
    env, spec, solved = Measured(env, task), get_spec(task), 0
    for seed in SEEDS:
        getattr(solutions, SOLUTIONS[task])(env, seed=seed, debug=False, vis=False)
        signals = {name: torch.stack([state[name] for state in env.states]) for name in env.states[0]}
        if not signals["success"].any():
            continue
        solved += 1
        end = int(signals["success"].nonzero()[0]) + 1  # it goes on to retreat
        signals = {name: values[:end] for name, values in signals.items()}
        labels = separate(spec, signals, torch.ones(end, dtype=torch.bool))
        assert labels[0] == 0 and labels[-1] == spec.num_stages and (labels.diff() >= 0).all()
        assert set(labels.tolist()) == set(range(spec.num_stages + 1))  # slow enough that every stage takes time
        phi = potential(labels, stage_error(spec, labels, signals), spec.num_stages)
        assert phi[0] < 0.5 and phi[-1] == 1 and ((phi >= 0) & (phi <= 1)).all()
        assert (phi.diff()[labels.diff() > 0] >= 0).all()
    env.close()
    assert solved >= 4
