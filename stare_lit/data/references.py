"""Log-probabilities of stored decisions under the reference policy, computed once and kept beside the rollouts."""

import hashlib
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import NestedKey
from torch import Tensor, nn

from stare_lit import keys
from stare_lit.data.offline import KEPT, evaluating, policy_fingerprint
from stare_lit.data.trajectories import Trajectories
from stare_lit.objectives.executed import sum_executed

log = logging.getLogger(__name__)

LEFT_OUT = (keys.INSTRUCTION_ID, keys.EPISODE_SEED, keys.next_(keys.SIGNALS), keys.next_(keys.SUCCESS))


def decision_keys(trajectories: Trajectories) -> list[NestedKey]:
    """The stored keys that evaluating a decision may read."""
    stored = [tuple(name.split("/")) for name in trajectories.layout or ()]
    wanted = [(key,) if isinstance(key, str) else key for key in KEPT if key not in LEFT_OUT]
    return [key for key in wanted if any(name[: len(key)] == key for name in stored)]


def reference_log_probs(
    policy: nn.Module,
    trajectories: Trajectories,
    *,
    temperature: float = 1.0,
    batch_size: int = 64,
    precision: str = "32-true",
    context: AbstractContextManager[object] | None = None,
    show_progress: bool = True,
) -> Tensor:
    """log pi_ref(a_t | s_t) of every row, summed over the executed tokens; float32 [rows].

    Read from ``references/`` in the trajectories' folder where the same weights, temperature, precision and rows were evaluated before,
    else computed in eval mode and written (beside its place, then renamed).

    Args:
        policy: the policy that enters the phase, before any adapter or wrapping.
        temperature: of the log-probabilities; the training must use the same.
        batch_size: decisions a forward.
        precision: the trainer's, part of the file's name; ``context`` is its autocast.
    """
    rows = len(trajectories)
    setting = f"{policy_fingerprint(policy)} {temperature} {precision} {rows}"
    file = trajectories.folder / "references" / f"{hashlib.sha256(setting.encode()).hexdigest()[:24]}.safetensors"
    if (stored := _stored(file, setting)) is not None:
        return stored
    device = next(policy.parameters()).device
    wanted, parts = decision_keys(trajectories), []
    with evaluating(policy), torch.no_grad(), context or nullcontext(), Progress(disable=not show_progress) as progress:
        for index in progress.track(torch.arange(rows).split(batch_size), description="reference log-probs"):
            decisions = trajectories.rows(index, wanted).to(device)
            log_probs = policy.evaluate_actions(decisions, temperature=temperature)["log_probs"].float()
            parts.append(sum_executed(log_probs, decisions[keys.next_(keys.NUM_STEPS)].squeeze(-1)).cpu())
    log_prob = torch.cat(parts)
    if not torch.isfinite(log_prob).all():
        row = int((~torch.isfinite(log_prob)).nonzero()[0])
        raise ValueError(f"policy: its log-probability of stored decision {row} is {float(log_prob[row])}; the weights are damaged, or not those that acted")
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({"log_prob": log_prob}, temporary, metadata={"setting": setting, "sha256": _digest(log_prob)})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}); make room, then run the same command again") from error
    os.replace(temporary, file)
    return log_prob


def _stored(file: Path, setting: str) -> Tensor | None:
    """What was computed before; None where there is none, or a damaged or foreign file in its place: it is then computed again."""
    try:
        with safe_open(file, "pt") as content:
            log_prob, metadata = content.get_tensor("log_prob"), content.metadata() or {}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        metadata = {}
    if metadata.get("setting") == setting and metadata.get("sha256") == _digest(log_prob):
        return log_prob
    log.warning("%s is damaged, or of another program: computed again", file)
    return None


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
