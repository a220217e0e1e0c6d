"""Import of ManiSkill's own trajectories (``.h5`` with a ``.json`` beside it): replayed in our environment, which renders the images."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import h5py
import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from stare_lit import keys
from stare_lit.data.demonstrator import ACTION_DIM, EXECUTED_ACTION, DemoSettings, run_expert
from stare_lit.data.trajectories import Trajectories, TrajectoryMetadata, TrajectoryWriter
from stare_lit.envs.maniskill import ManiSkillEnv
from stare_lit.envs.robots import OFFICIAL_LAYOUTS, robot_of
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.envs.signals import instructions_of


def import_h5(
    path: str | Path,
    *,
    out: str | Path,
    task: str | None = None,
    replay: Literal["actions", "states"] = "actions",
    with_actions: bool = True,
    image_size: int = 64,
    num_episodes: int | None = None,
    visuals: Literal["auto", "light", "exact"] = "auto",
) -> Trajectories:
    """ManiSkill trajectories as ours, with images, proprioception and signals; cut after the step that reaches success. Goes on where it stopped.

    Args:
        path: the .h5 file; its .json lies beside it under the same name.
        out: folder of trajectories; made where absent.
        task: refuse a file of another task; None takes any.
        replay: ``actions`` resets to the recorded seed and executes the actions again; an episode that then ends otherwise than recorded is
            left out, and counted. ``states`` puts the scene into each recorded state instead, which is right whatever the actions were; only
            contacts (``contact``, ``grasped``, ``released``) are then found again by a physics step of their own, and may differ for a step
            around a grasp (measured on StackCube: 1 of 63 steps).
        with_actions: False imports observations and signals only (to check stage labels), from any control mode and any scene; needs ``states``.
            With actions a policy can be trained on what is imported, so scenes that policies are measured in are refused.
        image_size: pixels of the square images.
        num_episodes: only the first so many.
        visuals: see ``ManiSkillEnv``.

    Raises:
        FileNotFoundError: no .h5 or no .json.
        ValueError: unknown task, another control mode, seeds outside the training range or a Bridge task (with actions), no recorded states, no
            episodes, or a folder that holds other trajectories.
    """
    path = Path(path)
    info, recorded = _read_json(path)
    if task is not None and task != info["env_id"]:
        raise ValueError(f"task={task!r}, but {path} was recorded in {info['env_id']!r}; give that task, or another file")
    settings = DemoSettings(info["env_id"], image_size, visuals=visuals)
    instructions = instructions_of(settings.task)
    mode = recorded[0].get("control_mode") or info["env_kwargs"].get("control_mode")
    own_mode = robot_of(settings.task).control_mode
    _check_mode(path, mode, own_mode, replay, with_actions)
    _check_scenes(path, settings.task, {entry["episode_id"]: _seed(entry) for entry in recorded[:num_episodes]}, replay, with_actions)
    metadata = TrajectoryMetadata(
        settings.task, ACTION_DIM, 1, own_mode if with_actions else mode, image_size, instructions,
        config={"imported_from": path.name, "replay": replay, "with_actions": with_actions, "visuals": visuals},
    )  # fmt: skip
    with TrajectoryWriter(out, metadata) as writer:
        done = {entry["episode_id"] for entry in writer.stored.infos}
        different = _replay(path, [entry for entry in recorded[:num_episodes] if entry["episode_id"] not in done], settings, writer)
        stored = writer.stored
    text = f"; {len(different)} ended otherwise than recorded and were left out (episode_id {different}); replay='states' keeps them" if different else ""
    Console(soft_wrap=True, highlight=False).print(f"{stored.num_episodes} episodes of {settings.task} imported into {out}{text}")
    return stored


def _replay(path: Path, recorded: list[dict[str, Any]], settings: DemoSettings, writer: TrajectoryWriter) -> list[int]:
    """Replays and stores the episodes; returns the ids of those that ended otherwise than recorded, which are not stored."""
    if not recorded:
        return []
    config, different = writer.metadata.config, []
    play = _play_actions if config["replay"] == "actions" else _play_states
    with h5py.File(path) as file, closing(ManiSkillEnv(settings.task, image_size=settings.image_size, visuals=settings.visuals)) as env:
        if absent := [entry["episode_id"] for entry in recorded if f"traj_{entry['episode_id']}" not in file]:
            raise ValueError(f"path={str(path)!r}: holds no trajectory of the episodes {absent} that its .json lists; record it again, or mend the .json")
        for entry in recorded:
            data, table = play(env, file[f"traj_{entry['episode_id']}"], _seed(entry))
            if bool(table["success"]) != bool(entry.get("success", table["success"])):
                different.append(entry["episode_id"])
                continue
            if not config["with_actions"]:
                data = data.exclude(keys.ACTION, EXECUTED_ACTION)
            writer.append(data, table, info={"episode_id": entry["episode_id"]})
    return different


def _read_json(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """env_info and episodes."""
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(f"path={str(path)!r}: {file} is absent; ManiSkill writes an .h5 and a .json of the same name, both are needed")
    if not h5py.is_hdf5(path):
        raise ValueError(f"path={str(path)!r} is not an HDF5 file; give a trajectory that ManiSkill recorded")
    try:
        content = json.loads(beside.read_text())
        info, episodes = content["env_info"], content["episodes"]
        info["env_id"], info["env_kwargs"], [episode["episode_id"] for episode in episodes]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} does not describe ManiSkill trajectories ({error!r}); give a trajectory that ManiSkill recorded") from error
    if not episodes:
        raise ValueError(f"path={str(path)!r} holds no episodes; record some first")
    return info, episodes


def _check_mode(path: Path, mode: str, own_mode: str, replay: str, with_actions: bool) -> None:
    if replay not in ("actions", "states"):
        raise ValueError(f"replay={replay!r}: choose 'actions' or 'states'")
    if mode != own_mode and (with_actions or replay == "actions"):
        raise ValueError(
            f"path={str(path)!r} was recorded with control mode {mode!r}, the policy acts in {own_mode!r}; record it in that mode, "
            "or import it with replay='states', with_actions=False (observations and signals only)"
        )


def _check_scenes(path: Path, task: str, seeds: dict[int, int], replay: str, with_actions: bool) -> None:
    """Refuses demonstrations in scenes that policies are measured in; ``seeds`` by episode_id.

    ManiSkill's own Bridge tasks know only the official layouts, whatever the seed. Ours draw other ones, so a reset does not lead to the recorded scene.
    """
    instead = "or import it with replay='states', with_actions=False (observations and signals only, which nothing is trained on)"
    if task in OFFICIAL_LAYOUTS and (with_actions or replay == "actions"):
        raise ValueError(
            f"path={str(path)!r}: a recording of {task} lies in the official layouts that policies are measured in, whatever its seeds; "
            f"make demonstrations in other ones with `stare demos --task {task}`, {instead}"
        )
    low, high = SEED_RANGES["train"]
    outside = [f"{seed} (episode_id {number})" for number, seed in seeds.items() if not low <= seed < high]
    if outside and with_actions:
        raise ValueError(
            f"path={str(path)!r}: {len(outside)} of {len(seeds)} episode seeds lie outside the training range {low}..{high - 1}: {', '.join(outside[:5])}"
            f"{', ...' if len(outside) > 5 else ''}; a policy may be measured in these scenes. Record episodes of seeds inside the range, {instead}"
        )


def _seed(entry: dict[str, Any]) -> int:
    seed = entry.get("episode_seed", entry.get("reset_kwargs", {}).get("seed"))
    seed = seed[0] if isinstance(seed, list) and seed else seed
    if not isinstance(seed, int):
        raise ValueError(f"episode_id={entry['episode_id']}: recorded without its seed ({seed!r}), so it cannot be replayed; record it with a seeded reset")
    return seed


class _Recorded:
    """An expert that repeats recorded actions [T, A]."""

    def __init__(self, actions: Tensor) -> None:
        self._actions = actions
        self.reset()

    def reset(self) -> None:
        self._next = iter(self._actions)

    def act(self, env: ManiSkillEnv) -> Tensor:
        return next(self._next)


def _play_actions(env: ManiSkillEnv, group: h5py.Group, seed: int) -> tuple[TensorDict, TensorDict]:
    actions = torch.from_numpy(group["actions"][:])
    env.max_episode_steps = len(actions)  # an episode that does not succeed ends with its recording
    return run_expert(env, _Recorded(actions), [seed])


def _play_states(env: ManiSkillEnv, group: h5py.Group, seed: int) -> tuple[TensorDict, TensorDict]:
    """Data [rows] and table [1] from the recorded states s_0..s_T."""
    if "env_states" not in group:
        raise ValueError(f"{group.name} has no recorded states (env_states); record with them, or replay='actions'")
    success = torch.from_numpy(group["success"][:])
    length = int(success.nonzero()[0]) + 1 if success.any() else len(success)
    actions, success = torch.from_numpy(group["actions"][:length]).float().clamp(-1, 1), success[:length]
    start = env.reset(seed=seed)
    seen = torch.stack([_observe(env, group, step) for step in range(length + 1)])
    data = seen[:-1].set(keys.INSTRUCTION_ID, start[keys.INSTRUCTION_ID].expand(length)).set(keys.EPISODE_SEED, start[keys.EPISODE_SEED].expand(length))
    last = torch.arange(length) == length - 1
    outcome = {
        keys.SIGNALS: seen[1:][keys.SIGNALS], keys.REWARD: success[:, None].float(), keys.SUCCESS: success[:, None],
        keys.TERMINATED: success[:, None], keys.TRUNCATED: (last & ~success)[:, None], keys.DONE: last[:, None],
    }  # fmt: skip
    data.set(keys.ACTION, actions).set(EXECUTED_ACTION, actions).set("next", TensorDict(outcome, [length]))
    table = {"length": torch.tensor([length]), "seed": torch.tensor([seed]), "success": success[-1:], "instruction_id": data[keys.INSTRUCTION_ID][:1]}
    return data, TensorDict(table, [1])


def _row(group: h5py.Group, step: int) -> dict[str, Any]:
    """Row ``step`` [1, ...] of every data set below ``group``; WidowX's controller has a state too, one level deeper than things have."""
    return {name: _row(part, step) if isinstance(part, h5py.Group) else torch.from_numpy(part[step])[None] for name, part in group.items()}


def _observe(env: ManiSkillEnv, group: h5py.Group, step: int) -> TensorDict:
    """Observation and signals in the recorded state s_step.

    A state holds no forces, and contacts come out of a physics step: so one step (10 ms) is made with the arm held where it is and the gripper
    as it was last commanded, and the state is put back before anything is measured.
    """
    simulator = env.simulator
    state = _row(group["env_states"], step)
    gripper = torch.from_numpy(group["actions"][step - 1, -1:])[None] if step else torch.ones(1, 1)
    simulator.set_state_dict(state)
    arm, hand = (simulator.agent.controller.controllers[name] for name in ("arm", "gripper"))
    arm.set_drive_targets(arm.qpos)
    hand.set_action(gripper)
    simulator.scene.step()
    simulator.set_state_dict(state)
    return TensorDict(env._observe(env.simulator.get_info()), batch_size=[])
