"""``stare rollouts``: episodes of a policy for preference pairs."""

from pathlib import Path

from stare_lit.data.offline import RolloutSettings, collect_rollouts, rollout_folder, select_episodes
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.io import Dtype


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
    print(f"next             stare fit --config configs/sta_tpo.yaml --data.folder {folder}")
