"""ManiSkill3 tasks as one TorchRL environment in the VLA key schema (see ``stare_lit.keys``)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from stare_lit import keys
from stare_lit.envs.direct import read_directly
from stare_lit.envs.perturbations import Perturbation
from stare_lit.envs.perturbed_scene import begin_episode, perturb_scene
from stare_lit.envs.robots import robot_of
from stare_lit.envs.seeds import official_layout
from stare_lit.envs.signals import instructions_of, signals_of
from stare_lit.envs.simulator import SimulatorConfig, camera_images, is_light, make_simulator, proprioception
from stare_lit.envs.specs import MAX_SEED, set_specs
from stare_lit.envs.stepping import EndEffectorStepper
from stare_lit.envs.visuals import lighten

ACTION_DIM = 7


class ManiSkillEnv(EnvBase):
    """One ManiSkill3 task; one step is one *decision*, which executes a chunk of up to ``chunk_size`` actions.

    Two ways to run, one class: ``num_envs=1`` is a single scene on CPU physics with batch size ``[]`` (many of them: ``EnvironmentPool``);
    ``num_envs > 1`` is a GPU batch on ``physx_cuda`` with batch size ``[num_envs]``, whose data stays on the device.

    The camera is rendered and the signals are measured once a decision, at its end. A decision stops early where the episode ends, so its
    ``num_steps`` is h <= H. In a GPU batch the simulator cannot stop single scenes: those that ended are sent a zero action until the
    decision is over; reward, success and h are those of their end, observation and signals those of the decision's. Those that a ``_step`` mask lets
    rest report h = 0. ManiSkill draws the episodes that start together in a GPU batch from the first one's seed: there none is a function of its own.

    Reward: ``step_reward`` is 1 at the first step with success where ``terminate_on_success``; otherwise the change of the success flag
    (+1 on success, -1 when it is lost again).

    Args:
        task: one of ``stare_lit.envs.signals.SIGNALS``.
        num_envs: parallel scenes; more than one needs CUDA.
        chunk_size: H, actions in a decision.
        observation: ``image`` (camera, proprioception) or ``state`` (proprioception, poses of the objects, no camera).
        image_size: height and width of the camera image, pixels.
        cameras: names of the task's cameras, by default its robot's own; of one ``observation.image`` is a tensor, of more a sub-tree by name.
        terminate_on_success: true for training; evaluation runs the full horizon.
        seed_range: episode seeds are drawn from ``[low, high)`` where none is given at reset.
        dense_reward: also measure the environment's own normalised dense reward.
        visuals: ``light`` meshes, ``exact`` ones, or ``auto``: light where the renderer is a CPU.
        picture: of a Bridge task: drawn ``squeezed`` to ``image_size``, or ``official``: 640 x 480 pixels, which the policy resizes, as in SimplerEnv.
        perturbation: what differs from the task as it is, for evaluation out of distribution.
        max_episode_steps: horizon in steps; the task's own by default.

    Raises:
        ValueError: unknown task, bad setting, missing assets (with the command that downloads them).
        RuntimeError: no device that SAPIEN can render with.
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        chunk_size: int = 1,
        observation: Literal["image", "state"] = "image",
        image_size: int = 64,
        cameras: Sequence[str] | None = None,
        terminate_on_success: bool = True,
        seed_range: tuple[int, int] = (0, 1_000_000),
        dense_reward: bool = False,
        visuals: Literal["auto", "light", "exact"] = "auto",
        picture: Literal["squeezed", "official"] = "squeezed",
        perturbation: Perturbation = Perturbation(),  # noqa: B008 (frozen)
        max_episode_steps: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if chunk_size < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ValueError(f"chunk_size={chunk_size}, max_episode_steps={max_episode_steps}: must be at least 1 (max_episode_steps None: the task's own).")
        if not 0 <= seed_range[0] < seed_range[1] <= MAX_SEED:
            raise ValueError(f"seed_range={tuple(seed_range)}: must be 0 <= low < high <= {MAX_SEED}.")
        seen = None if cameras is None else tuple(cameras)
        config = SimulatorConfig(task, num_envs, observation, image_size, seen, dense_reward, visuals, perturbation, picture)
        self._sim, horizon = make_simulator(config)
        self._light, self._fresh = is_light(config), False
        super().__init__(device=device or self._sim.device, batch_size=[num_envs] if num_envs > 1 else [])
        self.task, self.chunk_size, self.action_dim = task, chunk_size, ACTION_DIM
        self.perturbation, self.instructions = perturbation, perturbation.instructions_of(task, instructions_of(task))
        self.max_episode_steps = horizon if max_episode_steps is None else max_episode_steps
        self.robot, self.action_limit = robot_of(task), robot_of(task).action_limit
        self.cameras, self.observation = tuple(cameras or (self.robot.camera,)), observation
        self.terminate_on_success, self.seed_range, self.dense_reward = terminate_on_success, tuple(seed_range), dense_reward
        self._num = num_envs
        self._measure, self._height = signals_of(task, self.instructions)
        self._scene: Any = None
        self._adopt_scene()
        self._start_height = self._height(self._sim)
        self._succeeded = torch.zeros(num_envs, dtype=torch.bool, device=self._sim.device)
        self._seeds = torch.zeros(num_envs, dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(0)
        first = TensorDict(self._observe(self._sim.get_info()), batch_size=self.batch_size, device=self.device)
        self.signal_names = tuple(first[keys.SIGNALS].keys())
        set_specs(self, first, num_instructions=len(self.instructions), action_limit=self.action_limit, dense_reward=dense_reward)

    def _adopt_scene(self) -> None:
        """What belongs to one built scene, after the simulator has built another one: light meshes and the stepper."""
        if self._sim.scene is self._scene:
            return
        self._scene = self._sim.scene
        if self._light:
            lighten(self._scene.sub_scenes)
        if self._num == 1:
            read_directly(self._sim)
        perturb_scene(self._sim, self.task, self.perturbation)
        self._stepper = EndEffectorStepper(self._sim) if EndEffectorStepper.fits(self._sim) else None

    def _shaped(self, value: Tensor) -> Tensor:
        """[N, ...] of the simulator -> the environment's batch."""
        return value if self.batch_size else value[0]

    def _state(self, info: dict[str, Tensor]) -> Tensor:
        """float32 [N, S]: what the robot senses of itself; in the `state` variant ManiSkill's own state observation."""
        return self._sim.get_obs(info) if self.observation == "state" else proprioception(self._sim, self.robot.tool)

    def _observe(self, info: dict[str, Tensor]) -> dict[Any, Any]:
        success = info["success"]
        signals = {name: self._shaped(value.to(torch.float32)) for name, value in self._measure(self._sim, self._start_height).items()}
        signals["success"] = self._shaped(success.to(torch.float32))
        observation: dict[str, Any] = {"state": self._shaped(self._state(info).to(torch.float32))}
        if self.observation == "image":
            images = {name: self._shaped(image) for name, image in camera_images(self._sim, self.cameras).items()}
            observation["image"] = images if len(images) > 1 else next(iter(images.values()))
        return {keys.OBSERVATION: observation, keys.SIGNALS: signals}

    def _set_seed(self, seed: int | None) -> None:
        """Episodes from the next reset on are a function of ``seed`` alone."""
        self._generator = torch.Generator().manual_seed(0 if seed is None else int(seed))
        self._fresh = True

    def _reset(self, tensordict: TensorDictBase | None = None, *, seed: int | Sequence[int] | None = None, exact: bool = True, **_: Any) -> TensorDict:
        """Start episodes; ``seed`` gives the seed of each scene that is reset, in order.

        With ``exact`` an episode of a given seed starts in a simulator that is built anew (CPU physics): one that has run other episodes keeps
        contact caches, and the same seed and actions drift apart there by centimetres.
        """
        mask = None if tensordict is None or not self.batch_size else tensordict.get("_reset", None)
        index = torch.arange(self._num) if mask is None else mask.reshape(-1).nonzero().squeeze(-1).cpu()
        drawn = torch.randint(self.seed_range[0], self.seed_range[1], (len(index),), generator=self._generator) if seed is None else seed
        seeds = torch.as_tensor(drawn, dtype=torch.int64).reshape(-1)
        if len(seeds) != len(index):
            raise ValueError(f"seed has {len(seeds)} entries but {len(index)} episodes start; give one seed for each.")
        self._seeds[index] = seeds
        rebuild = self._num == 1 and ((seed is not None and exact) or self._fresh)
        self._fresh = False
        options: dict[str, Any] = {"reconfigure": True} if rebuild else {} if mask is None else {"env_idx": index.to(self._sim.device)}
        layout = official_layout(self.task, int(seeds[0])) if len(seeds) else None
        if layout is not None:
            options["episode_id"] = torch.tensor([layout])
        # ManiSkill draws from the first seed whichever scenes start
        _, info = self._sim.reset(seed=[int(seeds[0]) if len(seeds) else 0, *self._seeds[1:].tolist()], options=options)
        self._adopt_scene()
        begin_episode(self._sim, self.task, self.perturbation, int(self._seeds[0]))
        self._start_height[index] = self._height(self._sim)[index]
        self._succeeded[index] = False
        observed = self._observe(info)
        fresh = self._shaped(torch.isin(torch.arange(self._num), index).to(self._sim.device))
        for name, value in {"contact": 0.0, "grasped": 0.0, "released": 1.0}.items():
            if name in self.signal_names:  # no step was taken yet: the simulator still reports the contacts of the episode before
                observed[keys.SIGNALS][name] = torch.where(fresh, value, observed[keys.SIGNALS][name])
        nothing = torch.zeros(self._num, self.chunk_size)
        outcome = {keys.STEP_REWARD: nothing, keys.NUM_STEPS: torch.zeros(self._num, 1, dtype=torch.int64), keys.SUCCESS: self._succeeded[:, None]}
        content = self._content(observed, outcome | ({keys.DENSE_REWARD: nothing} if self.dense_reward else {}))
        return TensorDict(content, batch_size=self.batch_size, device=self.device)

    def _content(self, observed: dict[Any, Any], outcome: dict[Any, Tensor]) -> dict[Any, Any]:
        """What was observed, in the environment's batch, and the ``outcome`` [N, ...] of a decision."""
        counts = {keys.INSTRUCTION_ID: torch.zeros(self._num, dtype=torch.int64), keys.EPISODE_SEED: self._seeds.clone()}
        return observed | {name: self._shaped(value) for name, value in (counts | outcome).items()}

    def _advance(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One control step: the simulator's info and its dense reward [N] (0 where it was not asked for)."""
        if self._stepper is None:
            _, reward, _, _, info = self._sim.step(action)
            return info, reward
        self._stepper.step(action[0].numpy())
        info = self._sim.get_info()
        seen = self._sim.get_obs(info, unflattened=True) if self.dense_reward else None
        return info, self._sim.get_reward(obs=seen, action=action, info=info)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        return TensorDict(self.decide(tensordict[keys.ACTION_CHUNK], tensordict.get("_step", None)), batch_size=self.batch_size, device=self.device)

    def decide(self, chunk: Tensor, mask: Tensor | None = None) -> dict[Any, Any]:
        """What one decision leads to, as nested dictionaries: a TensorDict of them would take a tenth of a step of the state variant."""
        chunk = chunk.reshape(self._num, self.chunk_size, ACTION_DIM).to(self._sim.device)
        chunk = self.perturbation.disturbed(chunk, self._seeds, self._sim.elapsed_steps, self.action_limit)
        info, outcome = self._execute_alone(chunk) if self._num == 1 else self._execute(chunk, mask)
        if not self.dense_reward:
            del outcome[keys.DENSE_REWARD]
        outcome[keys.REWARD] = outcome[keys.STEP_REWARD].sum(-1, keepdim=True)
        outcome[keys.DONE] = outcome[keys.TERMINATED] | outcome[keys.TRUNCATED]
        return self._content(self._observe(info), outcome)

    def _execute_alone(self, chunk: Tensor) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """``_execute`` of one scene, on scalars: tensors of one number cost a tenth of a step of the state variant."""
        succeeded, elapsed = bool(self._succeeded), int(self._sim.elapsed_steps)
        step_reward, dense, terminated, num_steps = [0.0] * self.chunk_size, [0.0] * self.chunk_size, False, 0
        while num_steps == 0 or (num_steps < self.chunk_size and not terminated and elapsed + num_steps < self.max_episode_steps):
            info, reward = self._advance(chunk[:, num_steps])
            success = bool(info["success"])
            step_reward[num_steps], dense[num_steps] = float(success) - float(succeeded), float(reward)
            succeeded, num_steps = success, num_steps + 1
            terminated = success and self.terminate_on_success
        self._succeeded[0] = succeeded
        truncated = elapsed + num_steps >= self.max_episode_steps and not terminated
        outcome = {keys.STEP_REWARD: step_reward, keys.NUM_STEPS: [num_steps], keys.DENSE_REWARD: dense}
        flags = {keys.SUCCESS: succeeded, keys.TERMINATED: terminated, keys.TRUNCATED: truncated}
        return info, {name: torch.tensor([row]) for name, row in (outcome | {name: [flag] for name, flag in flags.items()}).items()}

    def _execute(self, chunk: Tensor, mask: Tensor | None) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Run ``chunk`` [N, H, A] where ``mask`` says so: the simulator's info at the end, and the outcome [N, ...] by key."""
        running = torch.ones(self._num, dtype=torch.bool, device=chunk.device) if mask is None else mask.reshape(self._num).to(chunk.device)
        terminated, succeeded = torch.zeros_like(running), self._succeeded.clone()
        num_steps = torch.zeros(self._num, dtype=torch.int64, device=chunk.device)
        step_reward = torch.zeros(self._num, self.chunk_size, device=chunk.device)
        dense = torch.zeros_like(step_reward)
        for i in range(self.chunk_size):
            info, reward = self._advance(chunk[:, i] * running[:, None])
            success = info["success"].bool()
            step_reward[:, i] = (success.float() - succeeded.float()) * running
            dense[:, i] = reward * running
            succeeded = torch.where(running, success, succeeded)
            num_steps += running
            if self.terminate_on_success:
                terminated |= success & running
            running = running & ~terminated & (self._sim.elapsed_steps < self.max_episode_steps)
        self._succeeded = succeeded
        outcome = {keys.NUM_STEPS: num_steps, keys.SUCCESS: succeeded, keys.TERMINATED: terminated}
        outcome |= {keys.TRUNCATED: (self._sim.elapsed_steps >= self.max_episode_steps) & ~terminated}
        return info, {name: value[:, None] for name, value in outcome.items()} | {keys.STEP_REWARD: step_reward, keys.DENSE_REWARD: dense}

    @property
    def simulator(self) -> Any:
        """The ManiSkill environment itself."""
        return self._sim

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the simulator."""
        self._sim.close()
        super().close(raise_if_closed=False)
