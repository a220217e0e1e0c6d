"""Outcomes by hand from a few padded episodes, the way through JSON, and a policy on the toy task."""

import json
import math

import pytest
import torch
from rich.console import Console
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.envs.factory import make_env
from stare_lit.envs.seeds import split_seeds
from stare_lit.evaluation.evaluate import Evaluation, evaluate_policy, summarise
from stare_lit.evaluation.report import report, stage_table, summary_table, write_json

NAMES = ("reach", "grasp", "place")


def episodes():
    """Three episodes of at most 3 decisions of 2 steps: success at step 3 and kept; in the middle of decision 1 and lost; never (ends after 2 decisions)."""
    step_reward = torch.tensor([[[0, 0], [1, 0], [0, 0]], [[1, -1], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]], dtype=torch.float32)
    success = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    num_steps = torch.tensor([[2, 2, 1], [2, 2, 2], [2, 1, 0]])
    stage_index = torch.tensor([[1, 3, 3], [1, 1, 1], [2, 1, -1]])
    outcome = {
        keys.STEP_REWARD: step_reward,
        keys.SUCCESS: success[..., None],
        keys.NUM_STEPS: num_steps[..., None],
        keys.STAGE_INDEX: stage_index,
        keys.TERMINATED: torch.zeros(3, 3, 1, dtype=torch.bool),
    }
    return TensorDict({"mask": num_steps > 0, "next": TensorDict(outcome, [3, 3])}, [3, 3])


def test_summary_by_hand():
    result = summarise(episodes(), [7, 8, 9], task="Toy-v0", temperature=0.0, stage_names=NAMES)
    assert result.success_once.tolist() == [True, True, False]
    assert result.success_at_end.tolist() == [True, False, False]
    assert result.length.tolist() == [5, 6, 3]
    assert result.time_to_success[:2].tolist() == [3, 1]
    assert math.isnan(result.time_to_success[2])
    assert result.episode_return.tolist() == [1, 0, 0]
    assert result.stages_done.tolist() == [3, 3, 2]
    assert [(r.successes, r.trials) for r in result.funnel.values()] == [(3, 3), (3, 3), (2, 3)]
    assert result.metrics()["stage_reached/place"] == pytest.approx(2 / 3)


def test_success_is_what_the_benchmark_counts_at_the_end_on_bridge_tasks():
    once, at_end = (summarise(episodes(), [7, 8, 9], task=task, temperature=0.0) for task in ("StackCube-v1", "PutCarrotOnPlateInScene-v1"))
    assert (once.success.successes, at_end.success.successes) == (2, 1)
    assert at_end.metrics()["success"] == pytest.approx(1 / 3) and at_end.metrics()["success_once"] == pytest.approx(2 / 3)
    kept = episodes()
    kept["next", keys.SUCCESS][1, 2] = True
    better = summarise(kept, [7, 8, 9], task="PutCarrotOnPlateInScene-v1", temperature=0.0)
    assert better.gain_over(at_end).wins == 1  # it kept what the other lost; both had success once


def test_success_that_the_true_geometry_does_not_confirm_is_told_apart():
    data = episodes()
    assert summarise(data, [7, 8, 9], task="Toy-v0", temperature=0.0).upright is None
    # at the end of its decisions: 0 stands while it succeeds, 1 stood before, 2 stands without success
    data["next", "signals"] = TensorDict({"upright": torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 1, 1]])}, [3, 3])
    result = summarise(data, [7, 8, 9], task="LiftPegUpright-v1", temperature=0.0)
    assert result.truly_upright.tolist() == [True, False, False] and result.upright.successes == 1
    stored = report({"after": result}, config={})["results"]["after"]
    assert stored["truly_upright"]["value"] == pytest.approx(1 / 3)
    assert Evaluation.from_dict(stored["episodes"]).truly_upright.tolist() == [True, False, False]
    console = Console(record=True, width=200)
    console.print(summary_table({"after": result}))
    assert "truly upright" in console.export_text()


@pytest.mark.parametrize(("task", "done"), [("StackCube-v1", [True, True, False]), ("PutCarrotOnPlateInScene-v1", [False, True, False])])
def test_what_was_told_counts_as_the_benchmark_counts_success(task, done):
    data = episodes()
    plain = summarise(data, [7, 8, 9], task=task, temperature=0.0)
    # 0 did it for a while, 1 at its end; what is written beyond the end of 2 was not told to it
    data["next", "signals"] = TensorDict({"told_success": torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 1]])}, [3, 3])
    result = summarise(data, [7, 8, 9], task=task, temperature=0.0)
    assert plain.told is None and result.told_success.tolist() == done and result.success == plain.success
    stored = report({"swapped": result}, config={})["results"]["swapped"]
    assert stored["told_success"]["successes"] == sum(done) and stored["means"]["told_success"] == pytest.approx(sum(done) / 3)
    assert Evaluation.from_dict(stored["episodes"]).told == result.told
    table = summary_table({"in distribution": plain, "swapped": result})
    assert list(table.columns[3].cells) == [str(plain.success), str(result.told)]  # told its own goal, the first one's is that of its success


def test_report_survives_json_and_tables_print(tmp_path):
    result = summarise(episodes(), [7, 8, 9], task="Toy-v0", temperature=0.0, stage_names=NAMES)
    path = write_json(tmp_path / "new" / "report.json", report({"after": result}, {"after": result.gain_over(result)}, config={"task": "Toy-v0"}))
    stored = json.loads(path.read_text())
    assert {"command", "config", "hardware", "versions", "created"} <= stored.keys()
    assert stored["results"]["after"]["success_once"]["trials"] == 3
    back = Evaluation.from_dict(stored["results"]["after"]["episodes"])
    assert back.success_once.tolist() == result.success_once.tolist()
    assert torch.equal(back.time_to_success.nan_to_num(-1), result.time_to_success.nan_to_num(-1))
    console = Console(record=True, width=200)
    console.print(summary_table({"before": result, "after": result}, {"after": result.gain_over(result)}), stage_table(result))
    text = console.export_text()
    assert "66.7 %" in text
    assert "+0.0 points" in text
    assert list(tmp_path.joinpath("new").iterdir()) == [path]


def test_gain_needs_the_same_seeds():
    first, second = (summarise(episodes(), seeds, task="Toy-v0", temperature=0.0) for seeds in ([1, 2, 3], [1, 2, 4]))
    with pytest.raises(ValueError, match="same task and seeds"):
        second.gain_over(first)


class StillPolicy(torch.nn.Module):
    """Does nothing at all."""

    chunk_size = 4

    def act(self, tensordict, *, temperature, value=False):
        assert not self.training
        assert not torch.is_grad_enabled()
        torch.rand(1)
        return tensordict.set(keys.ACTION_CHUNK, torch.zeros(*tensordict.shape, 4, 7))


@pytest.fixture
def toy():
    env = make_env("Toy-v0", 3, chunk_size=4, image_size=16, terminate_on_success=False)
    yield env
    env.close()


def test_a_policy_that_does_nothing_runs_the_full_horizon_and_fails(toy):
    policy, seen = StillPolicy().train(), []
    state = torch.random.get_rng_state()
    result = evaluate_policy(policy, toy, split_seeds("validation", 4), task="Toy-v0", watch=seen.append)
    assert result.once.successes == 0
    assert result.length.tolist() == [30] * 4
    assert policy.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(seen) == 16
