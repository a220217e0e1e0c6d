"""One class over all tasks: what the stages say of demonstrations, of worse ones, of dropped objects and of actions without sense."""

from dataclasses import dataclass

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import step_mdp

from stare_lit import keys
from stare_lit.data.demonstrator import DemoSettings, run_expert
from stare_lit.envs.robots import PANDA, WIDOWX, robot_of
from stare_lit.envs.toy import ToyEnv
from stare_lit.experts.make import make_demonstrator
from stare_lit.experts.maniskill import CONTROLLERS
from stare_lit.stages.calculator import potential, stage_cost, stage_error
from stare_lit.stages.separator import advance, initial, separate
from stare_lit.stages.tasks import get_spec, known_tasks

NUM_DEMOS = 50
NUM_WORSE = 10  # of them, again with noise
WORSE = 0.2  # share of the longest step, standard deviation
NUM_RANDOM = {PANDA: 100, WIDOWX: 30}  # episodes; a step of a WidowX is 0.2 s and takes ten times as long to simulate
PUSHED = ("PushCube-v1", "PullCube-v1")
DAWDLING = (*PUSHED, "Toy-v0")  # noise makes them stay where the error is small, which lowers its mean: results/stage_costs.json
ACCIDENTS = {  # success ends every stage, and this is the simulator's
    "PushCube-v1": "random actions knock the cube into its goal (9 of 400 episodes)",
    "PutCarrotOnPlateInScene-v1": "random actions sweep the carrot against the plate, where within half its diagonal is on it (1 of 200 episodes)",
    "PutSpoonOnTableClothInScene-v1": "random actions sweep the spoon onto the cloth (3 of 200 episodes)",
}


@dataclass
class Episodes:
    """Signals [E, T + 1] of each name, before the first decision and after each; ``mask`` True = real."""

    signals: dict[str, torch.Tensor]
    mask: torch.Tensor
    success: torch.Tensor

    @classmethod
    def of(cls, data: TensorDict, table: TensorDict) -> "Episodes":
        lengths = table["length"].tolist()
        episodes = [torch.cat([rows[keys.SIGNALS], rows[keys.next_(keys.SIGNALS)][-1:]]) for rows in data.split(lengths)]
        names = list(data[keys.SIGNALS].keys())
        padded = {name: torch.nn.utils.rnn.pad_sequence([rows[name] for rows in episodes], batch_first=True) for name in names}
        return cls(padded, torch.arange(max(lengths) + 1) <= table["length"][:, None], table["success"])


@pytest.fixture(scope="module", params=known_tasks())
def task(request, simulated):
    return request.param if request.param == "Toy-v0" else simulated(request.param)


@pytest.fixture(scope="module")
def hold(task):
    """Steps for which a demonstration goes on after success: where the last step counts, to let go and stay away."""
    return DemoSettings(task).hold


@pytest.fixture(scope="module")
def acting(task, hold):
    """Environment and expert; where the first success counts, it ends an episode."""
    env, expert = make_demonstrator(task, toy_batch=NUM_DEMOS, observation="state", terminate_on_success=not hold)
    yield env, expert
    env.close()


@pytest.fixture(scope="module")
def demos(acting, hold):
    """As they are made for imitation; ``success`` is that of the last step."""
    return Episodes.of(*run_expert(*acting, list(range(NUM_DEMOS)), hold=hold))


def labelled(task, episodes):
    """Stage index and error [E, T + 1]."""
    spec = get_spec(task)
    index = separate(spec, episodes.signals, episodes.mask)
    return spec, index, stage_error(spec, index, episodes.signals)


def carry_on(env, expert, seed, until):
    """The expert's episode of ``seed`` up to the state in which its online stage is ``until``: that state and its stage."""
    spec = get_spec("Toy-v0" if isinstance(env, ToyEnv) else env.task)
    expert.reset()
    td = env.reset(seed=seed if not env.batch_size else list(range(seed, seed + env.batch_size[0])))
    index = initial(spec, dict(td[keys.SIGNALS].items()))
    for _ in range(env.max_episode_steps):
        if int(index.flatten()[0]) >= until:
            break
        td = step_mdp(env.step(td.set(keys.ACTION_CHUNK, expert.act(env).reshape(*env.batch_size, 1, 7))))
        index = advance(spec, index, dict(td[keys.SIGNALS].items()), monotone=False)
    return spec, td, index


class TestEveryTask:
    def test_signals_are_there_and_in_their_units(self, task, demos):
        assert get_spec(task).signals <= set(demos.signals)
        for name, values in demos.signals.items():
            real = values[demos.mask]
            assert real.dtype == torch.float32 and real.isfinite().all()
            if name in ("success", "contact", "grasped", "released", "static", "on_target", "upright"):
                assert set(real.unique().tolist()) <= {0.0, 1.0}, name
            elif name == "axis_to_vertical":
                assert 0 <= real.min() and real.max() <= torch.pi / 2 + 1e-6
            else:
                assert real.abs().max() < 2.0, name  # metres on a table

    def test_the_demonstrator_succeeds(self, demos):
        assert demos.success.float().mean() >= 0.9

    def test_stages_of_every_successful_demonstration_come_in_order(self, task, demos):
        spec, index, _ = labelled(task, demos)
        for row, mask in zip(index[demos.success], demos.mask[demos.success], strict=True):
            labels = row[mask]
            assert labels[0] == 0 and labels[-1] == spec.num_stages
            assert set(labels.tolist()) >= set(range(spec.num_stages - 1)), labels  # placing may take no step of its own

    def test_success_ends_the_last_stage(self, task, demos):
        spec, index, error = labelled(task, demos)
        solved = demos.mask & (demos.signals["success"] > 0)
        assert (index[solved] == spec.num_stages).all() and (error[solved] == 0).all() and solved.any()

    def test_the_online_stage_of_a_demonstration_falls_only_where_the_object_does(self, task, demos):
        """The index that shapes the reward may go back; by itself, without ``monotone``, it comes in order in every success in which nothing slips."""
        spec = get_spec(task)
        index = separate(spec, demos.signals, demos.mask, monotone=False)
        falls = (index.diff() < 0) & demos.mask[:, 1:] & demos.success[:, None]
        lost = demos.signals["success"].diff() < 0  # what was placed does not stay
        if "grasped" in demos.signals:
            slips = demos.signals["grasped"].diff() < 0
            lost |= slips | torch.nn.functional.pad(slips, (1, -1))  # it may still be in the air one step later
        assert not (falls & ~lost).any(), (falls & ~lost).nonzero().tolist()
        assert falls.sum(1).float().mean() <= 0.2, falls.sum(1).tolist()
        assert falls.any(1).sum() <= 0.15 * len(falls), falls.any(1).nonzero().tolist()  # 5 of the stacks of Bridge, one of the spoon, of the others none

    def test_costs_lie_in_the_unit_interval_and_are_lower_for_better_executions(self, task, acting, hold, demos):
        spec, index, error = labelled(task, demos)
        cost = stage_cost(error, index, spec.num_stages)
        assert ((cost >= 0) & (cost <= 1)).all()
        worse = Episodes.of(*run_expert(*acting, list(range(NUM_WORSE)), action_noise=WORSE, hold=hold))
        _, worse_index, worse_error = labelled(task, worse)
        for reduction in ("sum",) if task in DAWDLING else ("sum", "mean"):
            clean = stage_cost(error, index, spec.num_stages, reduction=reduction)[:NUM_WORSE].sum(-1).mean()
            assert clean < stage_cost(worse_error, worse_index, spec.num_stages, reduction=reduction).sum(-1).mean(), reduction

    def test_potentials_lie_in_the_unit_interval_and_never_fall_where_a_stage_ends(self, task, demos):
        spec, index, error = labelled(task, demos)
        phi = potential(index, error, spec.num_stages)
        assert ((phi >= 0) & (phi <= 1)).all()
        ended = (index.diff() > 0) & demos.mask[:, 1:]
        assert (phi.diff()[ended] >= 0).all() and ended.any()

    def test_a_dropped_object_takes_the_stage_back(self, task, acting):
        env, expert = acting
        spec, td, index = carry_on(env, expert, 7, 1 if task in PUSHED else 2)
        reached = int(index.flatten()[0])
        assert reached < spec.num_stages
        away = torch.tensor(env.action_limit) * torch.tensor([0.0, 0, 1, 0, 0, 0, 1])  # up, with open fingers
        lowest = reached
        for _ in range(8):
            td = step_mdp(env.step(td.set(keys.ACTION_CHUNK, away.expand(*env.batch_size, 1, 7).clone())))
            index = advance(spec, index, dict(td[keys.SIGNALS].items()), monotone=False)
            lowest = min(lowest, int(index.flatten()[0]))
        assert lowest < reached  # a cube that slides on by itself may succeed after that

    @pytest.mark.parametrize("least", [0, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"])  # 200 of the eggplant take ten minutes
    def test_random_actions_hardly_ever_pass_the_grasp(self, task, acting, least):
        env, _ = acting
        spec, best, passed, num = get_spec(task), [], [], max(least, NUM_RANDOM[robot_of(task)])
        generator, limit = torch.Generator().manual_seed(0), torch.tensor(env.action_limit)
        for seed in range(1000, 1000 + num, env.batch_size.numel()):
            td = env.reset(seed=list(range(seed, seed + NUM_DEMOS))) if task == "Toy-v0" else env.reset(seed=seed, exact=False)
            index = initial(spec, dict(td[keys.SIGNALS].items()))
            best.append(index)
            passed.append(torch.zeros_like(index, dtype=torch.bool))
            for _ in range(env.max_episode_steps):
                action = (2 * torch.rand(*env.batch_size, 1, 7, generator=generator) - 1) * limit
                td = step_mdp(env.step(td.set(keys.ACTION_CHUNK, action)))
                index = advance(spec, index, dict(td[keys.SIGNALS].items()), monotone=False)
                best[-1] = torch.maximum(best[-1], index)
                passed[-1] |= (index >= 2) & (index < spec.num_stages)  # of a push, which is the last stage, nobody passes it but by success
                if td[keys.DONE].all():
                    break
        by_itself, at_all = torch.stack(passed).flatten(), torch.stack(best).flatten() >= 2
        allowed = num // 100
        assert by_itself.sum() <= allowed  # not because a success ended every stage
        # of 30 episodes two are such on one processor and none on another: it hangs on the last bits
        assert at_all.sum() <= (max(0.04 * num, 2) if task in ACCIDENTS else allowed)
        if at_all.sum() > allowed:
            pytest.xfail(f"{ACCIDENTS[task]}: success in {int(at_all.sum())} of {num} episodes, which ends every stage")


def test_every_task_has_a_demonstrator():
    assert set(CONTROLLERS) | {"Toy-v0"} == set(known_tasks())
