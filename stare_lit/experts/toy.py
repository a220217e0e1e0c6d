"""A scripted demonstrator of the toy world; acts for a whole batch from the privileged state, in the policy's own action space."""

import torch
from torch import Tensor

from stare_lit.envs import toy_world as world
from stare_lit.envs.toy import ACTION_DIM, ToyEnv

CARRY_HEIGHT = 0.07  # metres, of the gripper while it carries
NEAR = 0.025  # metres: closer than this to the block the gripper shuts (a grasp allows 0.045), to its place it opens
CLEAR = 0.03  # metres off in xy from which it keeps its height while approaching block or pad


class ToyExpert:
    """Goes above the block, down, shuts; lifts, carries, lowers, opens. Without memory, so it recovers from noise and from a dropped block."""

    def reset(self) -> None:
        """Nothing to forget: each action follows from the present state."""

    def act(self, env: ToyEnv) -> Tensor:
        """The next action of each environment, float32 [N, 7] in [-1, 1]; ``env`` is the bare ToyEnv (``base_env`` of a transformed one)."""
        return self.action(env.world_state)

    def action(self, state: world.ToyState) -> Tensor:
        """The same from a state; with ``toy_world.advance`` it plans a chunk ahead."""
        place = state.target - state.grip * state.held[:, None]  # where the gripper has to go so that the block it holds comes to rest there
        goal = torch.where(state.held[:, None], place, state.block)
        off_xy = (goal - state.tcp)[:, :2].norm(dim=-1)
        height = torch.where(off_xy > CLEAR, CARRY_HEIGHT, goal[:, 2])
        # before it is lifted a block stays off its way: first up, then across
        wait = state.held & (off_xy > CLEAR) & (state.tcp[:, 2] < CARRY_HEIGHT - world.MAX_DELTA)
        step = torch.cat([(goal - state.tcp)[:, :2] * ~wait[:, None], (height - state.tcp[:, 2])[:, None]], dim=-1)
        arrived = (goal - state.tcp).norm(dim=-1) < NEAR
        # a gripper that is shut on nothing has to open before it can grasp
        shut = torch.where(state.held, ~arrived, arrived & ~state.closed)
        done = state.success
        move = (step / world.MAX_DELTA).clamp(-1, 1) * ~done[:, None]
        action = torch.zeros(len(move), ACTION_DIM, device=move.device)
        action[:, :3] = move
        action[:, 6] = torch.where(shut & ~done, -1.0, 1.0)
        return action
