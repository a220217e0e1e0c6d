"""What runs beside training: evaluation in the simulator, stage metrics, statistics of the state, video, provenance, exact resume and a guard against NaN."""

from stare_lit.callbacks.exact_resume import ExactResume
from stare_lit.callbacks.non_finite import NonFiniteGuard
from stare_lit.callbacks.provenance import Provenance
from stare_lit.callbacks.rollout_evaluation import RolloutEvaluation
from stare_lit.callbacks.stage_metrics import StageMetrics
from stare_lit.callbacks.state_statistics import StateStatistics

__all__ = ["ExactResume", "NonFiniteGuard", "Provenance", "RolloutEvaluation", "StageMetrics", "StateStatistics"]
