"""``stare demos``: collect demonstrations, or import ManiSkill's own."""

from typing import Literal


def demos(
    task: str = "PushCube-v1",
    num_episodes: int = 100,
    out: str | None = None,
    image_size: int = 64,
    action_noise: float = 0.0,
    max_episode_steps: int | None = None,
    visuals: Literal["auto", "light", "exact"] = "auto",
    observation: Literal["image", "state"] = "image",
    cameras: tuple[str, ...] = (),
    gripper_noise: float = 0.0,
    arm_noise: float = 0.0,
    disguised: float = 0.0,
    first_seed: int = 0,
    keep_failures: bool = False,
    num_workers: int | None = None,
    min_success: float = 0.5,
    h5: str | None = None,
    replay: Literal["actions", "states"] = "actions",
    with_actions: bool = True,
) -> None:
    """Collect demonstrations of a task, or import ManiSkill's own; called again, it goes on where it stopped.

    Args:
        task: one of the tasks that the README lists, such as PushCube-v1 or Toy-v0.
        num_episodes: successful episodes wanted.
        out: folder to write to; by default data/demos/<task>-<image size>px-noise<noise> (<task>-state-noise<noise>; cameras are named, too).
        image_size: pixels of the square camera image.
        action_noise: standard deviation of noise on the executed translations, as a share of the longest step; labels stay noise-free.
        max_episode_steps: steps within which a demonstration must succeed; by default the task's own limit.
        visuals: renderer meshes; auto takes light ones where the renderer is a CPU.
        observation: state records the privileged low-dimensional observation and renders nothing.
        cameras: names of the task's cameras, such as [base_camera, hand_camera] of StackCube-v1; by default the robot's own one.
        gripper_noise: probability of each action with which the gripper begins to do the opposite of what it is told, for three actions.
        arm_noise: probability of each action with which the arm moves at random instead; an episode then begins with up to three such moves.
        disguised: of PushCube-v1 and PullCube-v1: share of the episodes that are drawn with marker and camera where the other task has them.
        first_seed: seeds are tried from here on, up to the end of the training range.
        keep_failures: also store failed episodes, in <out>/failures.
        num_workers: processes; by default one for each core, 0 runs in this one.
        min_success: stop with an error when the expert's success rate is clearly below this.
        h5: import this trajectory file of ManiSkill (its .json beside it) instead; num_episodes is then how many at most.
        replay: of an imported file: execute its actions again, or go through its recorded states.
        with_actions: false imports observations and signals only, from any control mode (with replay=states).
    """
    from stare_lit.data.demonstrator import DemoSettings
    from stare_lit.envs.seeds import SEED_RANGES

    settings = DemoSettings(task, image_size, action_noise, max_episode_steps, visuals, observation, cameras, gripper_noise, arm_noise, disguised)
    if h5 is None:
        if replay != "actions" or not with_actions:
            raise ValueError(f"replay={replay!r}, with_actions={with_actions}: these settings are for an import; give h5 as well, or leave them out")
        from stare_lit.data.collect import collect_demos

        collect_demos(
            settings, num_episodes, out=out or settings.folder, seed_range=(first_seed, SEED_RANGES["train"][1]), keep_failures=keep_failures,
            num_workers=num_workers, min_success=min_success,
        )  # fmt: skip
        return
    collecting = {
        "action_noise": action_noise, "gripper_noise": gripper_noise, "arm_noise": arm_noise, "max_episode_steps": max_episode_steps,
        "first_seed": first_seed, "keep_failures": keep_failures, "num_workers": num_workers, "observation": observation == "state",
        "cameras": cameras, "disguised": disguised,
    }  # fmt: skip
    if unused := [name for name, value in collecting.items() if value]:
        raise ValueError(f"h5={h5!r} imports recorded episodes, for which {', '.join(unused)} have no meaning; leave them out")
    from stare_lit.data.h5 import import_h5

    import_h5(
        h5, out=out or f"{settings.folder}-imported", task=task, replay=replay, with_actions=with_actions, image_size=image_size,
        num_episodes=num_episodes, visuals=visuals,
    )  # fmt: skip
