"""The separator of StARe (paper): signals -> g(t), the stage of each step.

``stage_index`` is int64: 0..K-1 is the stage being worked on *in the state s_t* (before the decision at t), K means all are done, -1 is
padding. Thresholds raise events, the entry condition of stage k+1 is the end condition of stage k. Ours: offline labels are monotone
(segments must be comparable between trajectories); online a stage may be lost again, for a potential must not pay for a state that no
longer holds. Success always ends every stage.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stare_lit.stages.predicates import Flag, Signals, read
from stare_lit.stages.spec import SUCCESS, StageSpec

PADDING = -1
"""Stage index of entries that do not exist."""


def advance(spec: StageSpec, index: Int[Tensor, "*B"], signals: Signals, *, monotone: bool) -> Int[Tensor, "*B"]:
    """The stage index in the new state, from the one before and the new state's signals (paper's separator; ``monotone`` is ours).

    ``index`` int64 ``[*B]``, ``signals`` each ``[*B]`` at the new state. With ``monotone`` (offline) the index never falls. Without
    (online) it first falls back to the first ended stage that is no longer kept (see ``Stage.keeps``). Then it moves on while the
    current stage's ``ends`` holds (several stages may end in one step); success gives K. Padding (-1) stays padding.

    Raises ``ValueError`` where a signal is missing.
    """
    last = spec.num_stages - 1
    current = index
    if not monotone:
        for k in range(last, -1, -1):  # from the last to the first: the earliest loss is written last and wins
            stage = spec.stages[k]
            if stage.keeps is None and k < last:
                continue
            kept = stage.ends(signals) if stage.keeps is None else stage.ends(signals) | stage.keeps(signals)
            current = torch.where((current > k) & ~kept, k, current)
    for k, stage in enumerate(spec.stages):
        current = torch.where((current == k) & stage.ends(signals), k + 1, current)
    current = torch.where(Flag(SUCCESS)(signals), spec.num_stages, current)
    return torch.where(index == PADDING, index, current)


def initial(spec: StageSpec, signals: Signals) -> Int[Tensor, "*B"]:
    """The stage index in the first state of an episode: ``advance`` from stage 0. ``signals`` each ``[*B]``."""
    return advance(spec, torch.zeros_like(read(signals, SUCCESS), dtype=torch.int64), signals, monotone=False)


def separate(spec: StageSpec, signals: Signals, mask: Bool[Tensor, "*B"], *, monotone: bool = True) -> Int[Tensor, "*B"]:
    """g(t) of whole trajectories (paper): ``initial`` at the first real step, then ``advance``; ``signals`` and ``mask`` are ``[*B, T]``.

    ``mask`` is True at real steps. Entries off the mask give -1 and do not matter, whatever they hold (NaN too).
    """
    state = {name: read(signals, name).unbind(-1) for name in spec.signals}
    index = torch.zeros_like(mask[..., 0], dtype=torch.int64)
    labels = []
    for t, real in enumerate(mask.unbind(-1)):
        index = torch.where(real, advance(spec, index, {name: values[t] for name, values in state.items()}, monotone=monotone), index)
        labels.append(torch.where(real, index, PADDING))
    return torch.stack(labels, -1)
