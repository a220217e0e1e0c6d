"""``stare stages``: draws one episode with its stages, to see whether a separator is right."""

from typing import Any, Literal

from stare_lit.cli.eval import OFFICIAL_VIEW
from stare_lit.envs.factory import check_renderer
from stare_lit.envs.robots import robot_of
from stare_lit.envs.seeds import Split, split_range
from stare_lit.envs.transforms import RewardConfig
from stare_lit.evaluation.episode import record_episode
from stare_lit.evaluation.report import console
from stare_lit.evaluation.stage_plot import check_path, save, terminal
from stare_lit.models.vla import VLAPolicy


def stages(
    task: str = "PushCube-v1",
    episode: int = 0,
    split: Split = "validation",
    checkpoint: str | None = None,
    temperature: float = 0.0,
    action_noise: float = 0.0,
    terminate_on_success: bool | None = None,
    reward: RewardConfig = RewardConfig(),  # noqa: B008 (frozen)
    image_size: int | None = None,
    visuals: Literal["auto", "light", "exact"] = "auto",
    cameras: tuple[str, ...] = (),
    output: str = "stages.png",
) -> None:
    """One episode as a picture: camera strip, stage bands, error, potential and shaped reward; and in short on the terminal.

    Args:
        task: environment id.
        episode: which seed of the split, from 0.
        split: seeds to take it from; of the test split look at none while you still change things. official draws the benchmark's own picture.
        checkpoint: policy folder that acts; null: the task's scripted expert.
        temperature: of the policy's tokens; 0 is greedy.
        action_noise: standard deviation of noise on the expert's translations.
        terminate_on_success: end there; null: as training does, so not where the last step counts (Bridge tasks).
        reward: what the episode is paid; mode stage or potential shows the shaping.
        image_size: pixels of the camera; null: the policy's own, or 128 for the expert.
        visuals: meshes of the renderer; Toy-v0 has none, so there only auto.
        cameras: for the expert: names of the task's cameras, drawn one below the other, such as [base_camera, hand_camera] of StackCube-v1; by default the
            robot's own one. A policy brings its own.
        output: file to write; its ending chooses the format (.png, .pdf, .svg).
    """
    check_renderer(task, visuals=visuals, cameras=cameras)
    check_path(output)
    seeds = split_range(split, task)
    if not 0 <= episode < len(seeds):
        raise ValueError(f"episode={episode}: the {split} split has the episodes 0..{len(seeds) - 1}")
    if checkpoint is not None and cameras:
        raise ValueError(f"cameras={list(cameras)}: the policy of checkpoint={checkpoint!r} sees through its own; leave one of the two out")
    policy = None if checkpoint is None else VLAPolicy.from_pretrained(checkpoint)
    seen: dict[str, Any] = {"cameras": cameras or None} if policy is None else {}
    if split == "official":
        if image_size is not None:
            raise ValueError(f"image_size={image_size}: split='official' draws the benchmark's picture, 640 x 480; leave it out, or choose another split")
        seen |= OFFICIAL_VIEW
    if visuals != "auto":
        seen["visuals"] = visuals
    size = (128 if policy is None else policy.config.image_size) if image_size is None else image_size
    ends = not robot_of(task).judged_at_end if terminate_on_success is None else terminate_on_success
    found = record_episode(
        task, seeds[episode], policy=policy, reward=reward, temperature=temperature, action_noise=action_noise, terminate_on_success=ends,
        image_size=size, **seen,
    )  # fmt: skip
    out = console()
    out.print(terminal(found))
    out.print(f"picture  {save(found, output)}")
