"""``stare rollouts``: episodes of a policy for preference pairs."""

import json
import shlex
from pathlib import Path

from stare_lit.data.offline import RolloutSettings, collect_rollouts, rollout_folder, select_episodes
from stare_lit.envs.factory import TOY
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.io import Dtype

LOADER = "stare_lit.models.vla.VLAPolicy.from_pretrained"


def rollouts(
    policy: Path,
    *,
    task: str = "PushCube-v1",
    folder: Path = Path("data/rollouts"),
    image_size: int | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    settings: RolloutSettings = RolloutSettings(),  # noqa: B008 (frozen)
) -> None:
    """Sample several episodes from each of many initial states with the policy that enters the preference phase.

    A call that was stopped goes on where it was; a call that finds everything does nothing.

    Args:
        policy: folder that ``save_pretrained`` wrote.
        task: environment id.
        folder: rollouts are written below it, in one folder per task and policy.
        image_size: side of the camera image in pixels; the policy's own by default.
        device: where the policy runs.
        dtype: of the weights, the one that the preference phase loads them in (its rollouts are those of the very same numbers); auto: as saved.
        settings: which episodes.
    """
    acting = VLAPolicy.from_pretrained(policy, None if dtype == "auto" else dtype).to(device)
    target = rollout_folder(folder, task, acting)
    trajectories = collect_rollouts(acting, target, settings, task=task, image_size=image_size)
    chosen = select_episodes(trajectories, settings)
    success = trajectories.episodes["success"][chosen].view(settings.num_states, settings.num_samples).float().mean(1)
    mixed = int(((success > 0) & (success < 1)).sum())
    print(f"rollouts         {target}")
    print(f"episodes         {len(chosen)} from {settings.num_states} initial states, success {success.mean():.3f}")
    print(f"states           {mixed} with both success and failure, {int((success == 1).sum())} always solved, {int((success == 0).sum())} never")
    config = "configs/toy/sta_tpo.yaml" if task == TOY else "configs/sta_tpo.yaml" if acting.config.towers else "configs/state/sta_tpo.yaml"
    print(f"next             {shlex.join(_preference_phase(config, policy, task, folder, image_size, dtype, settings))}")


def _preference_phase(config: str, policy: Path, task: str, folder: Path, image_size: int | None, dtype: Dtype, settings: RolloutSettings) -> list[str]:
    """The command that trains on these rollouts: the same policy, task, image and episodes.

    How many episodes is always said, for each configuration has its own numbers; the rest where it is not the default. The loss takes
    log-probabilities at the temperature of the sampling.
    """
    plain = RolloutSettings()
    changed = {name: value for name, value in vars(settings).items() if name in ("num_states", "num_samples") or value != getattr(plain, name)}
    options: dict[str, object] = {"model.policy.path": policy}
    if dtype == "auto":  # a plain --model.policy.dtype=null would be read as the text "None"
        options = {"model.policy": json.dumps({"class_path": LOADER, "init_args": {"path": str(policy), "dtype": None}})}
    elif dtype != "float32":
        options["model.policy.dtype"] = dtype
    options |= {"data.task": task, "data.folder": folder}
    if "temperature" in changed:
        options["model.temperature"] = settings.temperature
    if image_size is not None:
        options["data.image_size"] = image_size
    options |= {f"data.rollouts.{name}": value for name, value in changed.items()}
    return ["stare", "fit", "--config", config, *(f"--{name}={value}" for name, value in options.items())]
