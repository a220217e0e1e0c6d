"""Stage labels of stored rollouts: what each did, stage by stage."""

import torch
from tensordict import TensorDict
from torch import Tensor

from stare_lit import keys
from stare_lit.data.pairs import Outcomes
from stare_lit.envs.robots import robot_of
from stare_lit.objectives.executed import sum_executed
from stare_lit.stages.calculator import stage_completed, stage_cost, stage_error
from stare_lit.stages.separator import PADDING, separate
from stare_lit.stages.spec import StageSpec


def label(spec: StageSpec, episodes: TensorDict, mask: Tensor) -> tuple[Outcomes, Tensor]:
    """Stage labels of whole rollouts, monotone, from the signals stored with them.

    Args:
        spec: the task's stages.
        episodes: [N, T]; reads ``signals``, ``next/signals``, ``next/num_steps``, ``next/success``, ``vla_action/log_probs`` and ``episode_seed``.
        mask: bool [N, T], True = a real decision.

    Where the task's benchmark judges at the last step, so does the last stage: a success that was lost again never ended it, so that the decisions
    which lost it are among those that are compared.

    Returns:
        Outcomes of the N trajectories, and stage_index int64 [N, T] in the state before each decision (-1 padding).
    """
    signals = dict(episodes[keys.SIGNALS].items())
    # the T + 1 states of an episode of T decisions: the first, and what each decision led to
    states = {name: torch.cat([value[:, :1], episodes["next", keys.SIGNALS, name]], 1) for name, value in signals.items()}
    index = separate(spec, states, torch.cat([mask[:, :1], mask], 1), monotone=True)
    if robot_of(spec.name).judged_at_end:  # monotone labels would leave out what came after the first success, and blame what led to it
        succeeds = episodes[keys.next_(keys.SUCCESS)].squeeze(-1).gather(1, mask.sum(1, keepdim=True) - 1)
        index = torch.where(succeeds, index, index.clamp(max=spec.num_stages - 1))
    final, index = index.amax(1), torch.where(mask, index[:, :-1], PADDING)
    error = stage_error(spec, index, signals)
    num_steps = episodes[keys.next_(keys.NUM_STEPS)].squeeze(-1)
    likelihood = sum_executed(episodes[keys.LOG_PROBS], num_steps)
    outcomes = Outcomes(
        state=episodes[keys.EPISODE_SEED][:, 0],
        completed=stage_completed(index, final, spec.num_stages),
        decisions=stage_cost(torch.ones_like(error), index, spec.num_stages, reduction="sum").long(),
        cost=stage_cost(error, index, spec.num_stages),
        total_error=stage_cost(error * num_steps, index, spec.num_stages, reduction="sum"),
        log_likelihood=torch.where(mask, likelihood, 0.0).sum(1),
    )
    return outcomes, index
