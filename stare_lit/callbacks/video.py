"""A short film of a few evaluated episodes, side by side."""

from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor

from stare_lit import keys
from stare_lit.envs.robots import robot_of
from stare_lit.evaluation.episode import one_picture

MIN_SIDE = 192  # pixels; smaller camera images are enlarged by a whole factor, so that a player shows them as they are


def real_time_fps(task: str, chunk_size: int) -> int:
    """Frames a second at which one frame a decision plays in real time (at least 1)."""
    return max(1, robot_of(task).steps_per_second // chunk_size)


class FrameRecorder:
    """Collects the camera images of the episodes with the given seeds; pass it as ``watch`` to ``evaluate_policy``.

    Several cameras are filmed one below the other; without images nothing is recorded.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.frames: dict[int, list[Tensor]] = {int(seed): [] for seed in seeds}

    def __call__(self, tensordict: TensorDictBase) -> None:
        images = tensordict.get(keys.IMAGE, None)
        if images is None:
            return
        images = one_picture(images)
        row_of = {int(seed): row for row, seed in reversed(list(enumerate(tensordict[keys.EPISODE_SEED].reshape(-1).tolist())))}
        for seed in self.frames.keys() & row_of.keys():
            self.frames[seed].append(images[row_of[seed]].cpu().clone())

    def film(self) -> Tensor | None:
        """uint8 [T, H, W, 3], episodes side by side, each holding its last image until all are over; None where nothing was recorded."""
        clips = [torch.stack(frames) for frames in self.frames.values() if frames]
        if not clips:
            return None
        longest = max(len(clip) for clip in clips)
        held = [torch.cat([clip, clip[-1:].expand(longest - len(clip), *clip.shape[1:])]) for clip in clips]
        side_by_side = torch.cat(held, dim=-1)
        factor = -(-MIN_SIDE // side_by_side.shape[-2])
        return F.interpolate(side_by_side.float(), scale_factor=factor).to(torch.uint8).movedim(1, -1)


def write_video(path: Path | str, film: Tensor, *, fps: int = 10) -> Path:
    """``film`` uint8 [T, H, W, 3] as H.264 in ``path`` (.mp4); whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = film.numpy()
    odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2  # H.264 with 4:2:0 colour needs even sides
    frames = np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.stem}.part.mp4")
    imageio.mimwrite(temporary, list(frames), fps=fps, macro_block_size=2, codec="libx264")
    temporary.replace(path)
    return path
