"""A small staged pick-and-place world in plain torch: state, one step of it, signals, picture. Batched, without side effects.

One block stands on a table between a red and a blue pad; the instruction names the pad it has to be put on. A gripper moves by Cartesian
deltas, grasps what it closes upon, and drops what it lets go. Lengths are metres; x points right and y away from the viewer, z up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

INSTRUCTIONS = ("put the block on the red target", "put the block on the blue target")  # instruction_id -> text
SIGNALS = ("tcp_to_object", "grasped", "lift", "object_to_target_xy", "object_to_final", "released", "success")

REACH_XY = 0.16  # the gripper moves within +-REACH_XY in x and y
TCP_LOW, TCP_HIGH = 0.02, 0.16  # and between these heights
SPREAD_XY = 0.13  # block and pads start within +-SPREAD_XY
MIN_GAP = 0.11  # between the centres of block, red pad and blue pad at the start
MAX_DELTA = 0.04  # an action of 1 moves the gripper this far in one step
HALF_SIZE = 0.03  # of the block, so also the height of its centre on the table
FALL = 0.06  # a block let go falls this far in one step
GRASP_RADIUS = 0.045  # closing grasps a block whose centre is within this distance of the gripper's
TARGET_RADIUS = 0.05  # success needs the block's centre within this distance of the pad's, in xy
THING_HALF_SIZE = 0.02  # of a thing that only lies about
NUM_LAYOUTS = 16  # layouts drawn for a seed; the first one with MIN_GAP everywhere is taken


@dataclass(frozen=True)
class ToyState:
    """The whole state of N worlds."""

    tcp: Tensor  # float32 [N, 3] gripper position
    closed: Tensor  # bool [N] gripper commanded shut
    held: Tensor  # bool [N] block in the gripper
    grip: Tensor  # float32 [N, 3] block minus gripper at the moment of the grasp
    block: Tensor  # float32 [N, 3] position of the block's centre
    pads: Tensor  # float32 [N, 2, 2] xy of the red and the blue pad
    instruction: Tensor  # int64 [N] index of the pad asked for
    success: Tensor  # bool [N] block at rest on the pad asked for, let go
    steps: Tensor  # int64 [N] steps since the start

    @property
    def target(self) -> Tensor:
        """float32 [N, 3]: where the block's centre has to come to rest."""
        xy = self.pads[torch.arange(len(self.pads), device=self.pads.device), self.instruction]
        return torch.cat([xy, torch.full_like(xy[:, :1], HALF_SIZE)], dim=-1)


@dataclass(frozen=True)
class Look:
    """How N worlds are drawn, beyond their state; colours are red, green and blue from 0 to 255."""

    shift: tuple[float, float] = (0.0, 0.0)  # m that the camera stands to the right, and further up the picture
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors on red, green, blue
    table: tuple[float, ...] = (200, 200, 200)
    block: tuple[float, ...] = (40, 170, 60)
    things: Tensor | None = None  # float32 [N, K, 5]: xy (m) and colour of things that lie about


LOOK = Look()


def select(mask: Tensor, a: ToyState, b: ToyState) -> ToyState:
    """Row by row ``a`` where ``mask`` (bool [N]), else ``b``."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y)

    return ToyState(**{f.name: pick(getattr(a, f.name), getattr(b, f.name)) for f in fields(ToyState)})


def initial_state(seeds: Sequence[int], device: torch.device | str = "cpu") -> ToyState:
    """The start of the episodes ``seeds``: each row depends on its seed alone, not on its place in the batch or on the device."""
    draws = torch.stack([torch.rand(6 * NUM_LAYOUTS + 4, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
    layouts = (draws[:, :-4].view(-1, NUM_LAYOUTS, 3, 2) * 2 - 1) * SPREAD_XY  # block, red pad, blue pad
    gap = (layouts[:, :, [0, 0, 1]] - layouts[:, :, [1, 2, 2]]).norm(dim=-1).amin(-1)
    first = (gap >= MIN_GAP).to(torch.int8).argmax(-1)  # 0, the first draw, in the 1e-5 of seeds for which none fits
    places = layouts[torch.arange(len(layouts)), first]
    tcp_xy = (draws[:, -4:-2] * 2 - 1) * SPREAD_XY
    tcp_z = 0.08 + 0.06 * draws[:, -2:-1]
    num = len(draws)
    return ToyState(
        tcp=torch.cat([tcp_xy, tcp_z], dim=-1).to(device),
        closed=torch.zeros(num, dtype=torch.bool, device=device),
        held=torch.zeros(num, dtype=torch.bool, device=device),
        grip=torch.zeros(num, 3, device=device),
        block=torch.cat([places[:, 0], torch.full((num, 1), HALF_SIZE)], dim=-1).to(device),
        pads=places[:, 1:].to(device),
        instruction=(draws[:, -1] * len(INSTRUCTIONS)).long().to(device),
        success=torch.zeros(num, dtype=torch.bool, device=device),
        steps=torch.zeros(num, dtype=torch.int64, device=device),
    )


def advance(state: ToyState, action: Tensor) -> ToyState:
    """The world one step later.

    ``action`` float32 [N, 7] as ``pd_ee_delta_pose``: xyz delta in units of ``MAX_DELTA``, three rotations without effect, gripper (negative
    shuts, else open); clipped to [-1, 1]. A grasp needs the gripper to *shut* near the block; a shut gripper pushed onto it grasps nothing.
    """
    action = action.clamp(-1, 1)
    low, high = state.tcp.new_tensor([-REACH_XY, -REACH_XY, TCP_LOW]), state.tcp.new_tensor([REACH_XY, REACH_XY, TCP_HIGH])
    tcp = torch.minimum(torch.maximum(state.tcp + MAX_DELTA * action[:, :3], low), high)
    closed = action[:, 6] < 0
    near = (state.block - tcp).norm(dim=-1) <= GRASP_RADIUS
    grasps = closed & ~state.closed & near
    held = closed & (state.held | grasps)
    grip = torch.where(grasps[:, None], state.block - tcp, state.grip)
    falling = torch.cat([state.block[:, :2], state.block[:, 2:] - FALL], dim=-1)
    block = torch.where(held[:, None], tcp + grip, falling)
    block = torch.cat([block[:, :2], block[:, 2:].clamp_min(HALF_SIZE)], dim=-1)
    moved = ToyState(tcp, closed, held, grip, block, state.pads, state.instruction, state.success, state.steps + 1)
    return replace(moved, success=solved(moved))


def solved(state: ToyState) -> Tensor:
    """bool [N]: the block is at rest on the pad asked for, let go."""
    offset = state.block - state.target
    return (offset[:, :2].norm(dim=-1) <= TARGET_RADIUS) & (offset[:, 2].abs() < 1e-4) & ~state.held


def measure(state: ToyState) -> dict[str, Tensor]:
    """Privileged signals by name, float32 [N] each: distances in metres, flags 0 or 1."""
    offset = state.block - state.target
    return {
        "tcp_to_object": (state.tcp - state.block).norm(dim=-1),
        "grasped": state.held.float(),
        "lift": state.block[:, 2] - HALF_SIZE,
        "object_to_target_xy": offset[:, :2].norm(dim=-1),
        "object_to_final": offset.norm(dim=-1),
        "released": (~state.held).float(),
        "success": state.success.float(),
    }


def proprioception(state: ToyState) -> Tensor:
    """float32 [N, 4]: gripper position over its range (-1..1) and its opening (1 open, 0.5 around the block, 0 shut on nothing)."""
    opening = torch.where(state.held, 0.5, 1.0 - state.closed.float())
    height = (state.tcp[:, 2] - TCP_LOW) / (TCP_HIGH - TCP_LOW) * 2 - 1
    return torch.cat([state.tcp[:, :2] / REACH_XY, height[:, None], opening[:, None]], dim=-1)


def full_state(state: ToyState) -> Tensor:
    """float32 [N, 11], privileged: proprioception, block minus gripper, target minus block (both over ``REACH_XY``) and whether it is held."""
    relative = torch.cat([state.block - state.tcp, state.target - state.block], dim=-1) / REACH_XY
    return torch.cat([proprioception(state), relative, state.held.float()[:, None]], dim=-1)


def render(state: ToyState, size: int, look: Look = LOOK) -> Tensor:
    """uint8 [N, 3, size, size]: an oblique view. Height moves a thing up the picture, away from the shadow that stays on the table.

    Everything is a box with antialiased edges, painted back to front; the mask of a box is an outer product, which keeps this cheap.
    """
    view = 0.2  # half the width of the table area in view, metres
    pixel = 2 * view / size
    centres = (torch.arange(size, device=state.tcp.device) + 0.5) * pixel - view
    columns, rows = centres + look.shift[0], -centres + look.shift[1]
    image = centres.new_tensor(look.table).view(1, 3, 1, 1).repeat(len(state.tcp), 1, size, size)

    def paint(x: Tensor, y: Tensor, half_x: float, half_y: float, colour: Sequence[float] | Tensor, opacity: float = 1.0) -> None:
        across = ((half_x - (columns - x[:, None]).abs()) / pixel + 0.5).clamp(0, 1) * opacity
        down = ((half_y - (rows - y[:, None]).abs()) / pixel + 0.5).clamp(0, 1)
        mask = down[:, None, :, None] * across[:, None, None, :]
        image.lerp_(torch.as_tensor(colour, dtype=image.dtype, device=image.device).view(-1, 3, 1, 1).expand_as(image), mask.expand_as(image))

    for pad, colour in enumerate([(220, 40, 40), (40, 80, 220)]):
        paint(state.pads[:, pad, 0], state.pads[:, pad, 1], TARGET_RADIUS, TARGET_RADIUS, colour)
    for thing in () if look.things is None else look.things.unbind(1):
        paint(thing[:, 0], thing[:, 1], THING_HALF_SIZE, THING_HALF_SIZE, thing[:, 2:])
    rise = 0.5  # metres up the picture per metre of height
    for place, half in ((state.block, HALF_SIZE), (state.tcp, 0.012)):
        paint(place[:, 0], place[:, 1], half, half, (60, 60, 60), opacity=0.5)
    paint(state.block[:, 0], state.block[:, 1] + rise * (state.block[:, 2] - HALF_SIZE), HALF_SIZE, HALF_SIZE, look.block)
    spread = torch.where(state.held, HALF_SIZE + 0.004, torch.where(state.closed, 0.008, HALF_SIZE + 0.014))  # of the two fingers
    for side in (-1, 1):
        paint(state.tcp[:, 0] + side * spread, state.tcp[:, 1] + rise * (state.tcp[:, 2] - TCP_LOW), 0.008, 0.016, (20, 20, 20))
    if look.light != LOOK.light:
        image = (image * image.new_tensor(look.light).view(3, 1, 1)).clamp_(0, 255)
    return image.round_().to(torch.uint8)
