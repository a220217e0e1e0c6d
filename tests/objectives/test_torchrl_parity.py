"""Held against TorchRL: its functional GAE with a tensor gamma for chunks, its ClipPPOLoss for the clipped losses."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import MCAdvantage
from torchrl.objectives.value.functional import generalized_advantage_estimate, vec_generalized_advantage_estimate

from stare_lit.objectives.policy_gradient import clipped_surrogate_loss, clipped_value_loss, group_advantage
from stare_lit.stages.calculator import shaping

GAMMA, LMBDA = 0.97, 0.9


def chunked_gae(reward, value, next_value, steps, terminated, done):
    """``delta = R + gamma^h (1 - terminated) V(s') - V(s)``, ``A = delta + gamma^h lambda (1 - done) A'``, in plain Python over [N, T]."""
    advantage = torch.zeros_like(reward)
    for n in range(reward.shape[0]):
        later = 0.0
        for t in reversed(range(reward.shape[1])):
            discount = GAMMA ** int(steps[n, t])
            delta = reward[n, t] + discount * (1 - int(terminated[n, t])) * next_value[n, t] - value[n, t]
            later = delta + discount * LMBDA * (1 - int(done[n, t])) * later
            advantage[n, t] = later
    return advantage


def rollout(seed=0, batch=4, time=25, chunk=4):
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, batch, time, generator=generator, dtype=torch.float64)
    steps = torch.randint(1, chunk + 1, (batch, time), generator=generator)
    terminated, truncated = torch.rand(2, batch, time, generator=generator) < 0.1
    return reward, value, next_value, steps, terminated, terminated | truncated


@pytest.mark.parametrize("estimate", [generalized_advantage_estimate, vec_generalized_advantage_estimate])
@pytest.mark.parametrize("seed", range(3))
def test_gae_with_a_tensor_gamma_is_gae_with_chunks(estimate, seed):
    reward, value, next_value, steps, terminated, done = rollout(seed)
    discount = (GAMMA ** steps.to(reward.dtype)).unsqueeze(-1)
    column = [x.unsqueeze(-1) for x in (value, next_value, reward, done, terminated)]
    advantage, target = estimate(discount, LMBDA, *column)
    expected = chunked_gae(reward, value, next_value, steps, terminated, done)
    torch.testing.assert_close(advantage.squeeze(-1), expected)
    torch.testing.assert_close(target.squeeze(-1), expected + value)


def test_shaping_lowers_every_advantage_by_the_same_potential_where_the_critic_follows():
    """GAE on r' with V' = V - c Phi gives the advantages of GAE on r: chunks, true ends and truncation alike."""
    reward, value, next_value, steps, terminated, done = rollout(7)
    phi = torch.rand(reward.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    next_phi = torch.rand(reward.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    running = ~done[:, :-1]
    next_phi[:, :-1], next_value[:, :-1] = torch.where(running, phi[:, 1:], next_phi[:, :-1]), torch.where(running, value[:, 1:], next_value[:, :-1])
    shaped = reward + shaping(phi, next_phi, gamma=GAMMA, num_steps=steps, terminated=terminated, truncated=done & ~terminated)
    plain = chunked_gae(reward, value, next_value, steps, terminated, done)
    torch.testing.assert_close(chunked_gae(shaped, value - phi, next_value - next_phi, steps, terminated, done), plain)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits, value = torch.randn(64, 6, generator=generator), torch.randn(64, 1, generator=generator)
    action = torch.randint(6, (64,), generator=generator)
    log_prob = logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]
    batch = TensorDict(
        {
            "logits_in": logits,
            "value_in": value,
            "action": action,
            "sample_log_prob": log_prob + 0.3 * torch.randn(64, generator=generator),
            "advantage": torch.randn(64, 1, generator=generator),
            "value_target": value + 2 * torch.randn(64, 1, generator=generator),
            "state_value": value + 0.3 * torch.randn(64, 1, generator=generator),
        },
        [64],
    )
    return batch


class Scale(torch.nn.Module):
    """One parameter, so that gradients can be compared."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def test_clipped_losses_are_those_of_clip_ppo(case):
    actor_net, critic_net = Scale(), Scale()
    actor = ProbabilisticActor(
        TensorDictModule(actor_net, in_keys=["logits_in"], out_keys=["logits"]), in_keys=["logits"], distribution_class=Categorical, return_log_prob=True
    )
    critic = ValueOperator(critic_net, in_keys=["value_in"])
    loss = ClipPPOLoss(
        actor, critic, clip_epsilon=0.2, entropy_bonus=False, critic_coeff=1.0, loss_critic_type="smooth_l1", clip_value=0.2, normalize_advantage=False
    )
    loss.set_keys(sample_log_prob="sample_log_prob")
    theirs = loss(case)
    theirs["loss_objective"].backward()
    theirs["loss_critic"].backward()
    their_gradients = [p.grad.clone() for p in loss.parameters()]

    scale, value_scale = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    log_prob = (case["logits_in"] * scale).log_softmax(-1).gather(-1, case["action"][:, None])[:, 0]
    policy = clipped_surrogate_loss(log_prob, case["sample_log_prob"], case["advantage"][:, 0], clip_epsilon=0.2)
    values = [x[:, 0] for x in (case["value_in"] * value_scale, case["state_value"], case["value_target"])]
    critic_loss = clipped_value_loss(*values, clip_value=0.2, huber_delta=1.0)
    torch.testing.assert_close(policy.mean, theirs["loss_objective"])
    torch.testing.assert_close(critic_loss.mean, theirs["loss_critic"])
    torch.testing.assert_close(policy.metrics["clip_fraction"], theirs["clip_fraction"])
    torch.testing.assert_close(critic_loss.metrics["value_clip_fraction"], theirs["value_clip_fraction"])
    torch.testing.assert_close(critic_loss.metrics["explained_variance"], theirs["explained_variance"].squeeze())
    policy.mean.backward()
    critic_loss.mean.backward()
    torch.testing.assert_close([scale.grad, value_scale.grad], their_gradients)


def test_group_advantages_are_those_of_mc_advantage():
    """TorchRL's is a transform of a replay buffer that waits for the episodes of a group one by one; the numbers are the same."""
    lengths, outcomes, seeds = [3, 1, 2, 4, 2, 2], [0.0, 1.0, 1.0, 0.0, 0.0, 1.0], [7, 7, 7, 9, 9, 9]
    theirs = MCAdvantage(3, prompt_key="episode_seed", trajectory_return="sum")
    written = []
    for length, outcome, seed in zip(lengths, outcomes, seeds, strict=True):
        last = (torch.arange(length) == length - 1)[:, None]
        after = TensorDict(reward=outcome * last.float(), done=last, batch_size=[length])
        written.append(theirs._inv_call(TensorDict(episode_seed=torch.full((length,), seed), next=after, batch_size=[length])))
    advantage = torch.cat([group["advantage"].flatten() for group in written if group is not None])
    ours = group_advantage(torch.tensor(outcomes), group_size=3)
    torch.testing.assert_close(advantage, ours.repeat_interleave(torch.tensor(lengths)))
