"""``stare eval``: success of a saved policy on one split, with intervals, the stage funnel, and the paired gain over another policy."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stare_lit.callbacks.provenance import fingerprint
from stare_lit.callbacks.video import FrameRecorder, real_time_fps, write_video
from stare_lit.cli.perturbation import ALL, read_perturbations, split_by_fit
from stare_lit.envs.factory import envs_for, make_env
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.seeds import Split, split_seeds
from stare_lit.envs.signals import instructions_of
from stare_lit.evaluation.evaluate import Evaluation, evaluate_policy, full_horizon
from stare_lit.evaluation.report import console, report, stage_table, summary_table, write_json
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.io import Dtype
from stare_lit.stages.tasks import get_spec

IN_DISTRIBUTION = "in distribution"
OFFICIAL_VIEW = {"picture": "official", "visuals": "exact"}
"""What the official protocol of the Bridge tasks says of the environment beyond what is so in every evaluation of them (control mode, steps, last success):
the benchmark's own camera, drawn with its own meshes, where the policy sees images."""


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
    recorder = FrameRecorder(seeds[:video_episodes]) if video else None
    policy = _load(checkpoint, device, dtype)
    settings: dict[str, Any] = {"temperature": temperature, "num_envs": num_envs, "num_workers": num_workers, "environment": environment}
    result = _evaluate(policy, str(checkpoint), task, seeds, split=split, recorder=recorder, **settings)
    if video is not None and recorder is not None and (film := recorder.film()) is not None:
        write_video(video, film, fps=real_time_fps(task, policy.chunk_size))
    return result


def _load(checkpoint: str | Path, device: str, dtype: Dtype) -> VLAPolicy:
    return VLAPolicy.from_pretrained(checkpoint, None if dtype == "auto" else dtype).to(device)


def environment_of(own: Mapping[str, Any], split: Split, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of the environment: the policy's ``own``, those of the protocol of ``split``, and over both what was ``asked`` for."""
    settings = full_horizon(own, asked or {})
    return (OFFICIAL_VIEW if split == "official" and settings["observation"] == "image" else {}) | settings


def _evaluate(
    policy: VLAPolicy,
    name: str,
    task: str,
    seeds: Sequence[int],
    *,
    split: Split,
    temperature: float,
    num_envs: int,
    num_workers: int | None,
    environment: dict[str, Any] | None,
    recorder: FrameRecorder | None = None,
) -> Evaluation:
    """One evaluation with a progress bar that says ``name``; the result says in what environment."""
    settings = environment_of(policy.environment, split, environment)
    env = make_env(task, envs_for(len(seeds), num_envs, num_workers), num_workers=num_workers, **settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            episodes = bar.add_task(name, total=len(seeds))
            result = evaluate_policy(
                policy, env, seeds, task=task, temperature=temperature, watch=recorder, progress=lambda finished: bar.advance(episodes, finished)
            )
            return replace(result, environment={key: value for key, value in settings.items() if key != "perturbation"})
    finally:
        env.close()


def evaluate_perturbed(
    checkpoint: str | Path,
    task: str,
    num_episodes: int,
    split: Split,
    perturbations: Mapping[str, Perturbation],
    *,
    leave_out: bool = False,
    device: str = "cpu",
    dtype: Dtype = "float32",
    **settings: Any,
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluate the policy folder ``checkpoint`` as the task is, and under each perturbation, from the same seeds.

    Args:
        leave_out: pass over perturbations that the task or the policy's observation has no part for; else they are refused.
        settings: temperature, num_envs, num_workers and environment of :func:`eval`.

    Returns:
        Evaluations by name, ``in distribution`` first; and the reason why, for each perturbation that was left out.
    """
    get_spec(task)  # an unknown task is told before anything else
    seeds = split_seeds(split, num_episodes, task=task)
    policy = _load(checkpoint, device, dtype)
    environment = settings.pop("environment", None) or {}
    fitting, reasons = split_by_fit(perturbations, task, (policy.environment | environment)["observation"])
    if reasons and not (leave_out and fitting):
        raise ValueError("; ".join(reasons.values()))
    for perturbation in fitting.values():
        policy.prompts(perturbation.instructions_of(task, instructions_of(task)))  # a text that is too long is told before any work
    rows = {IN_DISTRIBUTION: Perturbation(), **fitting}
    return {
        name: _evaluate(policy, name, task, seeds, split=split, environment={**environment, "perturbation": row}, **settings) for name, row in rows.items()
    }, reasons


def eval(
    checkpoint: str,
    task: str = "PushCube-v1",
    num_episodes: int | None = None,
    split: Split = "validation",
    temperature: float = 0.0,
    compare: str | None = None,
    perturbation: list[str] | str | None = None,
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
        split: validation to choose by; test once, for the final number; train to look for over-fitting; official for the benchmark of a Bridge
            task: its fixed layouts, seen through its 640 x 480 camera and drawn with exact meshes; the number is success_at_end.
        temperature: 0 is greedy.
        compare: another policy folder, evaluated on the same seeds.
        perturbation: also evaluate out of distribution, on the same seeds: the path of a file as in configs/perturbations/, the name of one that ships,
            several of these ('[camera, lighting]'), or all.
        num_envs: environments side by side.
        num_workers: processes for them; null: one a core.
        environment: further settings of the environment, such as ``{max_episode_steps: 100}`` or ``{visuals: exact}``; over those of the split.
        device: where the policy runs: cpu, cuda.
        dtype: of the weights; auto: as saved, which halves the memory of a large policy.
        output: write the report as JSON to this file.
        video: write the first four episodes as a film to this .mp4 file.
    """
    if num_episodes is not None and num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes}: give at least 1, or leave it out for 100 (of the official split: every layout)")
    num_episodes = len(split_seeds(split, 100 if num_episodes is None and split != "official" else num_episodes, task=task))
    if perturbation is not None and (compare or video):
        raise ValueError("perturbation: cannot go together with compare or video; run stare eval once for each")
    asked = {} if perturbation is None else read_perturbations(perturbation)
    folders = {"before": compare, "policy": checkpoint} if compare else {"policy": checkpoint}
    prints = {name: fingerprint(folder) for name, folder in folders.items()}  # a missing one is told before any work
    common: dict[str, Any] = {"temperature": temperature, "num_envs": num_envs, "num_workers": num_workers, "environment": environment}
    common |= {"device": device, "dtype": dtype}
    config: dict[str, Any] = {"task": task, "split": split, "num_episodes": num_episodes, "folders": folders, "fingerprints": prints, **common}
    out = console()
    title = f"{task}, {num_episodes} {split} seeds, {'greedy' if temperature == 0 else 'sampled'}, temperature {temperature:g}"
    if asked:
        leave_out = perturbation in (ALL, [ALL])
        results, reasons = evaluate_perturbed(checkpoint, task, num_episodes, split, asked, leave_out=leave_out, **common)
        gains = {name: results[name].gain_over(results[IN_DISTRIBUTION]) for name in asked if name in results}
        config |= {"perturbations": {name: asdict(asked[name]) for name in gains}, "left_out": reasons}
        out.print(summary_table(results, gains, title=title, rows_are="condition"))
        for name, reason in reasons.items():
            out.print(f"left out  {name}: {reason}")
    else:
        results = {
            name: evaluate_checkpoint(folder, task, num_episodes, split, video=video if name == "policy" else None, **common)
            for name, folder in folders.items()
        }
        gains = {"policy": results["policy"].gain_over(results["before"])} if compare else {}
        out.print(summary_table(results, gains, title=title))
        out.print(stage_table(results["policy"]))
    for name, result in results.items():
        if view := [f"{part} {result.environment[part]}" for part in OFFICIAL_VIEW if part in result.environment]:
            out.print(f"{name}: {', '.join(view)}")
    if output:
        out.print(f"report  {write_json(output, report(results, gains, config=config))}")
    if video:
        out.print(f"video   {video if results['policy'].environment['observation'] == 'image' else 'none: the policy reads the state and sees no images'}")
    if split not in ("test", "official") and not compare and not asked:
        usual = {name: parameter.default for name, parameter in signature(eval).parameters.items()}
        changed = [f"--{name}={value if isinstance(value, str) else json.dumps(value, default=str)}" for name, value in common.items() if value != usual[name]]
        test = shlex.join(["stare", "eval", "--checkpoint", checkpoint, "--task", task, "--split", "test", "--num_episodes", "200", *changed])
        out.print(f"next    {test}")
