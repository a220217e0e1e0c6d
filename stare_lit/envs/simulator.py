"""Making a ManiSkill3 simulator: checks first, no prompt, light visuals, its cameras."""

import functools
import logging
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.robots import OFFICIAL_LAYOUTS, robot_of
from stare_lit.envs.signals import SIGNALS, instructions_of

OF_EPISODES = {"chunk_size", "terminate_on_success", "seed_range", "max_episode_steps"}
"""Settings of ``ManiSkillEnv`` of which the simulator knows nothing."""


@dataclass(frozen=True)
class SimulatorConfig:
    """What the simulator is made from; the arguments of ``ManiSkillEnv``."""

    task: str
    num_envs: int = 1
    observation: Literal["image", "state"] = "image"
    image_size: int = 64
    cameras: tuple[str, ...] | None = None
    dense_reward: bool = False
    visuals: Literal["auto", "light", "exact"] = "auto"
    perturbation: Perturbation = Perturbation()
    picture: Literal["squeezed", "official"] = "squeezed"


def _check(config: SimulatorConfig) -> None:
    if config.task not in SIGNALS:
        raise ValueError(f"task={config.task!r} is unknown; choose one of {sorted(SIGNALS)} (or Toy-v0).")
    if config.observation not in ("image", "state"):
        raise ValueError(f"observation={config.observation!r}: choose 'image' or 'state'.")
    if config.visuals not in ("auto", "light", "exact"):
        raise ValueError(f"visuals={config.visuals!r}: choose 'auto', 'light' or 'exact'.")
    if config.picture not in ("squeezed", "official"):
        raise ValueError(f"picture={config.picture!r}: choose 'squeezed' or 'official'.")
    if config.picture == "official" and (config.task not in OFFICIAL_LAYOUTS or config.observation != "image"):
        raise ValueError(f"picture='official': {config.task} with observation={config.observation!r} has none; it is for images of {sorted(OFFICIAL_LAYOUTS)}.")
    if config.cameras is not None and (config.observation == "state" or len(set(config.cameras)) < len(config.cameras)):
        raise ValueError(f"cameras={list(config.cameras)} with observation={config.observation!r}: name each once, for observation='image'")
    if config.image_size < 8:
        raise ValueError(f"image_size={config.image_size}: at least 8 pixels are needed.")
    if config.num_envs < 1:
        raise ValueError(f"num_envs={config.num_envs}: at least 1.")
    config.perturbation.check(config.task, instructions_of(config.task), observation=config.observation, num_envs=config.num_envs)
    if config.num_envs > 1 and not torch.cuda.is_available():
        raise ValueError(
            f"num_envs={config.num_envs} in one simulator needs CUDA (physx_cuda), and no CUDA device is visible; "
            "use stare_lit.envs.factory.make_env, which runs CPU environments side by side."
        )
    if config.task in OFFICIAL_LAYOUTS:
        if config.num_envs > 1:
            raise ValueError(f"num_envs={config.num_envs}: ManiSkill sets up only one scene of {config.task} at a time; run CPU environments, device='cpu'.")
        if config.dense_reward:
            raise ValueError(f"reward.mode='dense': {config.task} has no dense reward of its own; choose 'sparse', 'potential' or 'stage'.")


def check_settings(task: str, **settings: Any) -> None:
    """The checks of ``make_simulator`` that need no simulator, for a caller that is about to start processes."""
    known = {field.name for field in fields(SimulatorConfig)}
    if unknown := sorted(set(settings) - known - OF_EPISODES):
        raise ValueError(f"environment: {', '.join(unknown)}: no such setting; choose from {', '.join(sorted((known | OF_EPISODES) - {'task'}))}")
    _check(SimulatorConfig(task, **{name: value for name, value in settings.items() if name in known}))


def missing_assets(task: str) -> list[str]:
    """Ids of the assets of the task and its robot that are not on disk: ManiSkill would ask for either on standard input."""
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    import stare_lit.envs.bridge  # noqa: F401  registers the tasks, ManiSkill's own too

    missing = []
    for asset in [*(REGISTERED_ENVS[task].asset_download_ids or []), *robot_of(task).assets]:
        sources = assets.expand_data_group_into_individual_data_source_ids(asset) if asset in assets.DATA_GROUPS else [asset]
        missing += [source for source in sources if not assets.is_data_source_downloaded(source)]
    return missing


def _is_news(record: logging.LogRecord) -> bool:
    """False for warnings about ManiSkill's own tasks, which come at every rebuild (one an episode) and which nobody here can act on."""
    return not any(text in record.getMessage() for text in ("No initial pose set for actor builder", "Mimic targets dictionary is missing"))


def render_device() -> str:
    """What draws the cameras of this process, as SAPIEN and ManiSkill name it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def _hold_render_engine() -> Any:
    """A renderer that lives as long as the process, and SAPIEN's render engine with it. Where there is no camera nothing else holds the engine: each
    material of a scene, and with it each rebuild, would start Vulkan anew, which is half of the time of a rebuild. None where there is no Vulkan.

    It is one of the device that a camera of this process would use, for SAPIEN's engine stays with its first device."""
    import sapien

    try:
        return sapien.render.RenderSystem(sapien.Device(render_device()))
    except RuntimeError:
        return None  # who needs a renderer says so itself


def make_simulator(config: SimulatorConfig) -> tuple[Any, int]:
    """The unwrapped ManiSkill environment and its horizon in steps.

    Everything that ManiSkill would ask about on standard input is checked before, and is an error here.

    Raises:
        ValueError: unknown task or bad setting; missing assets, with the command that downloads them.
        RuntimeError: no device that SAPIEN can render with.
    """
    _check(config)
    import gymnasium
    from mani_skill import logger
    from mani_skill.utils.registration import REGISTERED_ENVS

    from stare_lit.envs.perturbed_scene import scale_objects

    logger.addFilter(_is_news)
    missing = missing_assets(config.task)
    if missing:
        commands = "; ".join(f"python -m mani_skill.utils.download_asset {asset}" for asset in missing)
        raise ValueError(f"task={config.task!r} needs assets that are not on disk: {missing}. Download them with: {commands} (or set MS_ASSET_DIR).")
    sees = config.observation == "image"
    if not sees:
        _hold_render_engine()
    settings: dict[str, Any] = {
        "num_envs": config.num_envs,
        "obs_mode": "none" if sees else "state",
        "reward_mode": "normalized_dense" if config.dense_reward else "none",
        "control_mode": robot_of(config.task).control_mode,
        "sim_backend": "physx_cpu" if config.num_envs == 1 else "physx_cuda",
        "render_backend": render_device() if sees else "none",
    }
    try:
        if config.task in OFFICIAL_LAYOUTS:
            from stare_lit.envs.bridge import make_bridge

            simulator = make_bridge(config.task, image_size=config.image_size if config.picture == "squeezed" else None, **settings)
        else:
            simulator = gymnasium.make(config.task, sensor_configs={"width": config.image_size, "height": config.image_size}, **settings).unwrapped
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("vulkan", "vk::", "physical device", "render")):
            raise RuntimeError(
                f"task={config.task!r}: SAPIEN found no Vulkan device to render with ({error}). Run `stare doctor`, which says what to install; "
                "Toy-v0 needs none."
            ) from error
        raise
    horizon = REGISTERED_ENVS[config.task].max_episode_steps
    if sees and config.cameras is not None:
        unknown = [name for name in config.cameras if name not in simulator.scene.sensors]
        if unknown or not config.cameras:
            raise ValueError(f"cameras={list(config.cameras)}: {config.task} has {sorted(simulator.scene.sensors)}; name one or more of these.")
    scale_objects(simulator, config.task, config.perturbation.object_scale)
    return simulator, horizon


def is_light(config: SimulatorConfig) -> bool:
    """Whether the scene is drawn with light meshes."""
    return config.observation == "image" and (config.visuals == "light" or (config.visuals == "auto" and not torch.cuda.is_available()))


def proprioception(simulator: Any, tool: str) -> Tensor:
    """[N, S]: joint positions, pose of the link ``tool``, and the pose that the arm was told to reach where actions start from there (WidowX) and not from
    the tool, which lags behind it by about a centimetre."""
    agent = simulator.agent
    told = [part["target_pose"] for part in agent.controller.get_state().values() if "target_pose" in part]
    return torch.cat([agent.robot.get_qpos(), agent.robot.links_map[tool].pose.raw_pose, *told], dim=-1)


def camera_images(simulator: Any, cameras: tuple[str, ...]) -> dict[str, Tensor]:
    """uint8 [N, 3, H, W] of each named camera, objects that the task hides hidden; on a Bridge task with the photograph behind robot and objects."""
    photographs = getattr(simulator, "_rgb_overlay_images", {})
    for actor in simulator._hidden_objects:
        actor.hide_visual()
    simulator.scene.update_render(update_sensors=True, update_human_render_cameras=False)
    images = {}
    for name in cameras:
        sensor = simulator.scene.sensors[name]
        sensor.capture()
        seen = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=name in photographs)
        image = seen["rgb"]
        if name in photographs:
            image = simulator._green_sceen_rgb(image, seen["segmentation"], photographs[name].to(image))
        images[name] = image.permute(0, 3, 1, 2).contiguous()
    return images
