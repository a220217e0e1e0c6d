"""`stare eval` and RolloutEvaluation hand `visuals` on to the simulator, which is asked before any process starts."""

from pathlib import Path

import pytest
from lightning import Trainer

from stare_lit.callbacks import RolloutEvaluation
from stare_lit.cli.eval import evaluate_checkpoint
from stare_lit.models.vla import VLAPolicy

POLICY = Path(__file__).parents[2] / "policies" / "push_cube_sft"


def test_eval():
    with pytest.raises(ValueError, match="visuals='pretty'"):
        evaluate_checkpoint(POLICY, "PushCube-v1", 1, "validation", environment={"visuals": "pretty"})


def test_rollout_evaluation(tmp_path):
    callback = RolloutEvaluation("PushCube-v1", num_episodes=1, environment={"visuals": "pretty"})
    with pytest.raises(ValueError, match="visuals='pretty'"):
        callback._measure(Trainer(default_root_dir=tmp_path, logger=False), VLAPolicy.from_pretrained(POLICY), "fit")
