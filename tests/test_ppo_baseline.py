"""The benchmark against ManiSkill's PPO: its parts by hand, and every arm for a few steps with a stand-in for the baseline's file."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.extend(str(ROOT / part) for part in ("benchmarks", "benchmarks/ppo_arms"))

import ppo_baseline  # noqa: E402
from record import Curve, Limits  # noqa: E402

BASELINE = """
import gymnasium as gym
import torch
import tyro
from dataclasses import make_dataclass
from torch.utils.tensorboard import SummaryWriter
import mani_skill.envs
from mani_skill.utils import gym_utils
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

if __name__ == "__main__":
    names = {"env_id": str, "control_mode": str, "seed": int, "total_timesteps": int, "num_envs": int, "num_steps": int, "num_minibatches": int,
             "update_epochs": int, "gamma": float, "gae_lambda": float, "learning_rate": float, "num_eval_envs": int, "num_eval_steps": int,
             "eval_freq": int, "capture_video": bool, "save_model": bool, "cuda": bool}
    args = tyro.cli(make_dataclass("Args", [(name, kind, kind(0)) for name, kind in names.items()]))
    kwargs = dict(obs_mode="state", render_mode="rgb_array", sim_backend="physx_cuda", control_mode=args.control_mode)
    envs = ManiSkillVectorEnv(gym.make(args.env_id, num_envs=args.num_envs, reconfiguration_freq=None, **kwargs), args.num_envs,
                              ignore_terminations=False, record_metrics=True)
    evals = ManiSkillVectorEnv(gym.make(args.env_id, num_envs=args.num_eval_envs, reconfiguration_freq=1, **kwargs), args.num_eval_envs,
                               ignore_terminations=True, record_metrics=True)
    assert gym_utils.find_max_episode_steps_value(envs._env) == 50
    SummaryWriter("runs/x").add_text("a", "b")
    obs, _ = envs.reset(seed=args.seed)
    evals.reset(seed=args.seed)
    action = lambda: torch.zeros(args.num_envs, *envs.single_action_space.shape)
    for iteration in range(1, args.total_timesteps):
        if iteration % args.eval_freq == 1:
            evals.reset()
            for _ in range(args.num_eval_steps):
                evals.step(action())
        for _ in range(args.num_steps):
            obs, reward, terminated, truncated, infos = envs.step(action())
            assert obs.shape == (args.num_envs, *envs.single_observation_space.shape) and reward.shape == terminated.shape == (args.num_envs,)
            if "final_info" in infos:
                done = infos["_final_info"]
                assert torch.equal(done, terminated | truncated) and not torch.equal(infos["final_observation"][done], obs[done])
"""


def test_curve_counts_no_evaluation(tmp_path):
    limits = Limits(target=0.9, max_steps=100, max_seconds=1e6)
    began = time.monotonic()
    curve = Curve(tmp_path / "curve.json", began - 10.0, limits)
    assert not curve.evaluated(0, [True, False], began - 4.0)  # it took 4 s
    assert curve.points[0]["seconds"] == pytest.approx(6.0)
    assert curve.seconds() == pytest.approx(6.0, abs=0.5)
    assert curve.evaluated(100, [True, False], time.monotonic())  # the cap
    assert not json.loads((tmp_path / "curve.json").read_text())["reached"]
    assert curve.evaluated(50, [True] * 9 + [False], time.monotonic()) and curve.reached


def test_the_baseline_evaluates_all_seeds_about_as_often():
    limits = Limits(every=10_000, num_episodes=100)
    line = ppo_baseline.stock_command(Path("ppo.py"), "PushCube-v1", 3, Path("out.json"), 0.0, limits)
    flags = dict(part[2:].split("=") for part in line[line.index("--") + 1 :] if "=" in part)
    assert int(flags["num_eval_envs"]) * int(flags["num_eval_steps"]) >= 100 * ppo_baseline.HORIZON
    rounds = int(flags["num_envs"]) * int(flags["num_steps"]) * int(flags["eval_freq"])
    assert 0.5 * limits.every < rounds < 2 * limits.every and int(flags["eval_freq"]) > 1
    assert int(flags["num_envs"]) % ppo_baseline.NUM_WORKERS == 0


def test_table_marks_what_was_cut():
    cell = {"reached": True, "env_steps": 60_000, "seconds": 90.0, "best_success": 0.93}
    cells = {"PushCube-v1/stock/0": cell | {"reached": False, "best_success": 0.5}, "PushCube-v1/scratch/0": cell}
    found = ppo_baseline.table(cells, ["PushCube-v1"], [0])
    assert list(found.columns[2].cells) == ["> 60,000, 90 s (best 0.50)", "60,000, 90 s", "-", "-", "-"]


def test_a_missing_baseline_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="github.com/haosulab/ManiSkill"):
        ppo_baseline.main(["--baseline", str(tmp_path / "ppo.py"), "--output", str(tmp_path / "out.json")])


def test_stock_episodes_are_ours():
    """Same seed, same actions: the states that a stock environment shows to the baseline are those that ours shows to the policy."""
    from stock_env import Group

    from stare_lit import keys
    from stare_lit.envs.maniskill import ManiSkillEnv

    group = Group("PushCube-v1", "pd_ee_delta_pose", 2, ignore_terminations=True, seeds=[[1_000_000, 1_000_001], [1_000_002, 1_000_003]])
    ours = ManiSkillEnv("PushCube-v1", observation="state", terminate_on_success=False)
    seen, _ = group.reset()
    mine = ours.reset(seed=1_000_001)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        np.testing.assert_allclose(seen["obs"][1], mine[keys.STATE].numpy(), atol=1e-5)
        action = torch.rand(7, generator=generator) * 2 - 1
        seen, *_ = group.step(np.stack([action.numpy()] * 2))
        mine = ours.step(mine.set(keys.ACTION_CHUNK, action[None]))["next"]
    assert seen["truncated"].all() and not seen["terminated"].any()
    np.testing.assert_allclose(seen["final"][1], mine[keys.STATE].numpy(), atol=1e-5)
    np.testing.assert_allclose(seen["obs"][1], ours.reset(seed=1_000_003)[keys.STATE].numpy(), atol=1e-5)
    group.close()
    ours.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_arm_runs_and_is_skipped_when_done(tmp_path, capsys):
    baseline = tmp_path / "ppo.py"
    baseline.write_text(BASELINE)
    given = [
        "--baseline",
        str(baseline),
        "--tasks",
        "PushCube-v1",
        "--seeds",
        "0",
        "--tiny",
        "--root",
        str(tmp_path / "runs"),
        "--output",
        str(tmp_path / "o.json"),
    ]
    ppo_baseline.main(given)
    found = json.loads((tmp_path / "o.json").read_text())
    cells = found["cells"]
    assert set(cells) == {f"PushCube-v1/{arm}/0" for arm in ppo_baseline.ARMS}
    assert all(cell["seconds"] > 0 and cell["env_steps"] >= 100 and 0 <= cell["best_success"] <= 1 for cell in cells.values())
    demos = cells["PushCube-v1/demos/0"]
    assert demos["points"][0]["env_steps"] == demos["charged"]["env_steps"] > 0  # demonstrations count
    assert demos["points"][0]["seconds"] > demos["charged"]["seconds"] > 0
    assert {"baseline_sha256", "stock", "configs", "tried", "hardware", "versions"} <= set(found)
    stamp = (tmp_path / "o.json").stat().st_mtime_ns
    capsys.readouterr()
    ppo_baseline.main(given)
    assert (tmp_path / "o.json").stat().st_mtime_ns == stamp and "stock" in capsys.readouterr().out
