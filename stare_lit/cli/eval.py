"""``stare eval``: success of a saved policy on one split, with intervals, the stage funnel, and the paired gain over another policy."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stare_lit.callbacks.provenance import fingerprint
from stare_lit.callbacks.video import FrameRecorder, real_time_fps, write_video
from stare_lit.envs.factory import make_env
from stare_lit.envs.seeds import Split, split_seeds
from stare_lit.evaluation.evaluate import Evaluation, evaluate_policy
from stare_lit.evaluation.report import console, report, stage_table, summary_table, write_json
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.io import Dtype


def evaluate_checkpoint(
    checkpoint: str | Path,
    task: str,
    num_episodes: int | None,
    split: Split,
    *,
    temperature: float = 0.0,
    num_envs: int = 8,
    num_workers: int | None = None,
    environment: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    video: str | Path | None = None,
    video_episodes: int = 4,
) -> Evaluation:
    """Evaluate the policy folder ``checkpoint`` to the full horizon; see :func:`eval` for the arguments."""
    seeds = split_seeds(split, num_episodes, task=task)
    policy = VLAPolicy.from_pretrained(checkpoint, None if dtype == "auto" else dtype).to(device)
    settings = {**policy.environment, "terminate_on_success": False, **(environment or {})}
    recorder = FrameRecorder(seeds[:video_episodes]) if video else None
    env = make_env(task, min(num_envs, len(seeds)), num_workers=num_workers, **settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            episodes = bar.add_task(f"{Path(checkpoint)}", total=len(seeds))
            result = evaluate_policy(
                policy, env, seeds, task=task, temperature=temperature, watch=recorder, progress=lambda finished: bar.advance(episodes, finished)
            )
    finally:
        env.close()
    if video is not None and recorder is not None and (film := recorder.film()) is not None:
        write_video(video, film, fps=real_time_fps(policy.chunk_size))
    return result


def eval(
    checkpoint: str,
    task: str = "PushCube-v1",
    num_episodes: int | None = None,
    split: Split = "validation",
    temperature: float = 0.0,
    compare: str | None = None,
    num_envs: int = 8,
    num_workers: int | None = None,
    environment: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    output: str | None = None,
    video: str | None = None,
) -> None:
    """Success of a saved policy with Wilson 95 % intervals, its stage funnel and, with ``compare``, its paired gain over another policy.

    Args:
        checkpoint: policy folder (``runs/.../best``).
        task: environment id.
        num_episodes: one from each of the first seeds of the split; null: 100, or every official layout.
        split: validation to choose by; test once, for the final number; train to look for over-fitting; official for the fixed layouts of a
            Bridge task, whose number is success_at_end.
        temperature: 0 is greedy.
        compare: another policy folder, evaluated on the same seeds.
        num_envs: environments side by side.
        num_workers: processes for them; null: one a core.
        environment: further settings of the environment, such as ``{max_episode_steps: 100}`` or ``{visuals: exact}``.
        device: where the policy runs: cpu, cuda.
        dtype: of the weights; auto: as saved, which halves the memory of a large policy.
        output: write the report as JSON to this file.
        video: write the first four episodes as a film to this .mp4 file.
    """
    num_episodes = len(split_seeds(split, num_episodes or (None if split == "official" else 100), task=task))
    folders = {"before": compare, "policy": checkpoint} if compare else {"policy": checkpoint}
    prints = {name: fingerprint(folder) for name, folder in folders.items()}  # a missing one is told before any work
    common: dict[str, Any] = {"temperature": temperature, "num_envs": num_envs, "num_workers": num_workers, "environment": environment}
    common |= {"device": device, "dtype": dtype}
    results = {
        name: evaluate_checkpoint(folder, task, num_episodes, split, video=video if name == "policy" else None, **common) for name, folder in folders.items()
    }
    gains = {"policy": results["policy"].gain_over(results["before"])} if compare else {}
    out = console()
    out.print(
        summary_table(results, gains, title=f"{task}, {num_episodes} {split} seeds, {'greedy' if temperature == 0 else 'sampled'}, temperature {temperature:g}")
    )
    out.print(stage_table(results["policy"]))
    if output:
        config = {"task": task, "split": split, "num_episodes": num_episodes, "folders": folders, "fingerprints": prints, **common}
        out.print(f"report  {write_json(output, report(results, gains, config=config))}")
    if video:
        out.print(f"video   {video}")
    if split not in ("test", "official") and not compare:
        test = shlex.join(["stare", "eval", "--checkpoint", checkpoint, "--task", task, "--split", "test", "--num_episodes", "200"])
        out.print(f"next    {test}")
