"""Thin shells over ``stages/`` and the table of instructions: they read keys, call a pure function, write keys, and keep no state of their own."""

from stare_lit.envs.transforms.instruction import InstructionText, InstructionTokens
from stare_lit.envs.transforms.reward import RewardConfig, StageReward, stage_transforms
from stare_lit.envs.transforms.stage import StageTracker

__all__ = ["InstructionText", "InstructionTokens", "RewardConfig", "StageReward", "StageTracker", "stage_transforms"]
