"""Named changes of a task for out-of-distribution evaluation: values with units, and what of them needs no simulator.

A ``Perturbation`` says what differs from the task as it was trained on; one without arguments changes nothing, to the bit. All that is random in one
is drawn from the episode's seed, each part from a stream of its own, so that an evaluation stays a function of its seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

Triple = tuple[float, float, float]

TABLETOP = ("PushCube-v1", "PullCube-v1", "StackCube-v1", "LiftPegUpright-v1")  # whose table, lights and objects `perturbed_scene` knows
SHARED_SCENES = ("PushCube-v1", "PullCube-v1")  # alike but for the places of marker and camera, which give the task away
TOY = "Toy-v0"
ON_BRIDGE = {"light", "ambient_light", "object_colour", "joint_noise", "action_noise", "instructions"}  # table and background are a photograph
DRAWN = {"camera_translation", "camera_rotation", "light", "ambient_light", "table_colour", "ground_colour", "object_colour", "disguised"}  # in an image only
BATCHED = {"action_noise", "instructions"}  # also where many scenes share one simulator
IN_TOY = {"camera_translation", "light", "table_colour", "num_distractors", "object_colour", "action_noise", "instructions"}
OBJECT_SCALES = (0.7, 1.25)  # beyond, the gripper closes on nothing, or opens less than the peg is wide
STACK_SCALES = (0.7, 1.0)  # the cubes of StackCube-v1 start so close that larger ones could overlap
MAX_DISTRACTORS = 6  # more do not surely find a free place
MAX_JOINT_NOISE = 0.15  # rad; beyond, the gripper could start in the table
NUM_ARM = 6  # actions of the arm, before the gripper's
JOINTS, DISTRACTORS, ACTIONS, DISGUISE = 1, 2, 3, 4  # streams of random numbers
NUM_PLACES = 1_000  # places drawn for the distractors of an episode


def draws(seed: int, stream: int, *more: int) -> np.random.Generator:
    """The random numbers of one part of the episode ``seed``."""
    return np.random.default_rng([int(seed), stream, *more])


@dataclass(frozen=True)
class Perturbation:
    """What differs from the task as it was trained on.

    Args:
        camera_translation: metres that every camera is moved forward, to its left and up, in its own frame.
        camera_rotation: radians that it is turned by about these axes: roll, pitch (downwards), yaw (to the left).
        light: factors on red, green and blue of every lamp.
        ambient_light: the same for the light from everywhere.
        table_colour: red, green and blue in [0, 1] in place of the table's texture.
        ground_colour: the same for the floor, which is the background.
        num_distractors: boxes and balls at rest on the table, in other places each episode and never in the way: their centres keep ``CLEARANCE`` of
            ``perturbed_scene`` from objects, goal and the straight lines from the gripper to the object and on to the goal.
        object_scale: factor on the size of the task's movable objects, drawn and felt, at the same density. The task's own lengths (half sizes) are
            scaled with it, so its start rests on the table and its success test means the same; goals and tolerances keep their size.
        object_colour: red, green and blue of the object that is handled. The instruction is left as it is, also where it names a colour.
        disguised: share of the episodes, drawn from their seeds, in which marker and camera stand where the other of ``SHARED_SCENES`` has them. Goal, signals
            and success stay the task's own, so that only the instruction tells what is to be done.
        joint_noise: radians; the arm's joints start up to this far from where the task puts them, uniformly.
        action_noise: standard deviation of Gaussian noise on the six actions of the arm, as a share of the longest ones, to which the sum is clipped.
        instructions: other words, by task: one text for each that the task has. Words of another task whose goal the scene holds too are judged by that
            goal as well (``TOLD_SUCCESS``).

    Raises:
        ValueError: a value out of its range.
    """

    camera_translation: Triple = (0.0, 0.0, 0.0)
    camera_rotation: Triple = (0.0, 0.0, 0.0)
    light: Triple = (1.0, 1.0, 1.0)
    ambient_light: Triple = (1.0, 1.0, 1.0)
    table_colour: Triple | None = None
    ground_colour: Triple | None = None
    num_distractors: int = 0
    object_scale: float = 1.0
    object_colour: Triple | None = None
    disguised: float = 0.0
    joint_noise: float = 0.0
    action_noise: float = 0.0
    instructions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "camera_translation": (-1.0, 1.0), "camera_rotation": (-np.pi, np.pi), "light": (0.0, 10.0), "ambient_light": (0.0, 10.0),
            "table_colour": (0.0, 1.0), "ground_colour": (0.0, 1.0), "object_colour": (0.0, 1.0),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or not all(low <= number <= high for number in value)):
                raise ValueError(f"{name}={value}: give three numbers from {low:g} to {high:g}")
        for name, (low, high) in {
            "num_distractors": (0, MAX_DISTRACTORS), "object_scale": OBJECT_SCALES, "joint_noise": (0.0, MAX_JOINT_NOISE), "action_noise": (0.0, 1.0),
            "disguised": (0.0, 1.0),
        }.items():  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: choose from {low:g} to {high:g}")
        for task, texts in self.instructions.items():
            if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(f"instructions[{task}]={texts!r}: give a list of texts, none of them empty")

    @property
    def changes(self) -> set[str]:
        """Names of the fields that change something."""
        nothing = Perturbation()
        return {each.name for each in fields(self) if getattr(self, each.name) != getattr(nothing, each.name)}

    def check(self, task: str, own: Sequence[str], *, observation: str = "image", num_envs: int = 1) -> None:
        """``ValueError`` where this cannot be done.

        Args:
            task: environment id.
            own: its table of instructions.
            observation: of the environment; "state" sees no picture.
            num_envs: scenes in one simulator.
        """
        if self.disguised and task not in SHARED_SCENES:
            raise ValueError(f"disguised={self.disguised}: no other task shares the scene of {task}; leave it out, or choose one of {', '.join(SHARED_SCENES)}")
        known = IN_TOY if task == TOY else {each.name for each in fields(self)} if task in TABLETOP else ON_BRIDGE
        if unknown := self.changes - known:
            raise ValueError(f"perturbation: {task} has no {', '.join(sorted(unknown))}; leave it out, or choose a task that has ({', '.join(TABLETOP)})")
        hidden = DRAWN | ({"num_distractors"} if task == TOY else set())
        if observation == "state" and (unseen := self.changes & hidden):
            raise ValueError(f"perturbation: {', '.join(sorted(unseen))} cannot be seen with observation='state'; leave it out, or choose 'image'")
        if task == TOY and self.camera_translation[0]:
            raise ValueError(f"camera_translation={self.camera_translation}: the camera of {TOY} moves left and up only; set the first number to 0")
        if task == "StackCube-v1" and not STACK_SCALES[0] <= self.object_scale <= STACK_SCALES[1]:
            raise ValueError(
                f"object_scale={self.object_scale}: {task} starts with its cubes close together; choose from {STACK_SCALES[0]} to {STACK_SCALES[1]}"
            )
        if task != TOY and num_envs > 1 and (unknown := self.changes - BATCHED):
            raise ValueError(
                f"perturbation: {', '.join(sorted(unknown))} needs one scene a simulator; set num_workers, which runs CPU environments side by side"
            )
        if self.instructions and len(self.instructions.get(task, ())) != len(own):
            raise ValueError(f"instructions: {len(self.instructions.get(task, ()))} of {task}, which has {len(own)}: give other words for {list(own)}")

    def instructions_of(self, task: str, own: Sequence[str]) -> tuple[str, ...]:
        """The table of instructions of ``task``: its ``own``, or other words."""
        return tuple(self.instructions.get(task, own))

    def disguises(self, seed: int) -> bool:
        """Whether the episode ``seed`` is one of the ``disguised``."""
        return bool(draws(seed, DISGUISE).random() < self.disguised)

    def joint_offsets(self, seed: int, num: int) -> np.ndarray:
        """float32 [num]: radians by which the arm's joints start elsewhere in the episode ``seed``."""
        return draws(seed, JOINTS).uniform(-self.joint_noise, self.joint_noise, num).astype(np.float32)

    def disturbed(self, chunk: Tensor, seeds: Tensor, steps: Tensor, limit: Sequence[float]) -> Tensor:
        """``chunk`` [N, H, A] as the arm executes it from step ``steps`` [N] of the episodes ``seeds`` [N] on; ``limit`` [A] is the longest action.

        The noise of a step depends on seed and step alone, not on how steps are grouped into decisions.
        """
        if not self.action_noise:
            return chunk
        rows = [
            [draws(seed, ACTIONS, step + i).standard_normal(NUM_ARM) for i in range(chunk.shape[1])]
            for seed, step in zip(seeds.tolist(), steps.tolist(), strict=True)
        ]
        noise = torch.zeros_like(chunk)
        noise[..., :NUM_ARM] = self.action_noise * torch.from_numpy(np.array(rows)).to(chunk)
        longest = torch.tensor(limit).to(chunk)
        return (chunk + noise * longest).clamp(-longest, longest)


def free_places(
    generator: np.random.Generator, num: int, segments: np.ndarray, *, low: tuple[float, float], high: tuple[float, float], clearance: float, gap: float
) -> np.ndarray:
    """float64 [num, 2]: places drawn in the rectangle from ``low`` to ``high``.

    Args:
        generator: of the random numbers.
        num: how many.
        segments: float [S, 2, 2], straight lines (start and end, xy) to keep ``clearance`` from.
        low, high: corners.
        clearance, gap: metres to the lines, and to each other.

    Raises:
        RuntimeError: there is no room for them.
    """
    drawn = generator.uniform(low, high, (NUM_PLACES, 2))
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    away = drawn[:, None] - start  # [D, S, 2]
    share = ((away * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-12)).clip(0, 1)
    distance = np.linalg.norm(away - share[..., None] * along, axis=-1).min(1)
    chosen: list[np.ndarray] = []
    for place in drawn[distance >= clearance]:
        if len(chosen) < num and all(np.linalg.norm(place - other) >= gap for other in chosen):
            chosen.append(place)
    if len(chosen) < num:
        raise RuntimeError(f"num_distractors={num}: only {len(chosen)} find a free place in this episode; choose fewer")
    return np.array(chosen).reshape(num, 2)
