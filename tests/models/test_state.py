"""A state that is read by its statistics."""

import dataclasses
import json

import pytest
import torch

from stare_lit import keys
from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.state import LARGEST, SMALLEST_STD, NormalizedLinear


def test_numbers_by_hand():
    layer = NormalizedLinear(3, 3)
    assert not layer.calibrated
    layer.calibrate(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]]))
    assert layer.calibrated
    assert layer.mean.tolist() == [2.0, 5.0, 0.0]
    assert layer.std.tolist() == pytest.approx([2**0.5, SMALLEST_STD, SMALLEST_STD])
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
        layer.bias.zero_()
    read = layer(torch.tensor([2.0 + 2**0.5, 5.0 + SMALLEST_STD, 100.0]))
    torch.testing.assert_close(read, torch.tensor([1.0, 1.0, LARGEST]), atol=1e-4, rtol=0)


def test_as_made_it_is_a_linear_layer():
    layer = NormalizedLinear(4, 2)
    states = torch.randn(5, 4)
    assert torch.equal(layer(states), torch.nn.functional.linear(states, layer.weight, layer.bias))


@pytest.mark.parametrize("states", [torch.zeros(1, 3), torch.zeros(4, 2), torch.zeros(3), torch.full((4, 3), float("nan"))])
def test_bad_states(states):
    with pytest.raises(ValueError, match="states"):
        NormalizedLinear(3, 1).calibrate(states)


def test_statistics_travel_with_the_weights(make_policy, observe, tmp_path):
    policy = make_policy(observation="state", normalize_state=True)
    seen = observe(6)
    before = policy.value_only(seen)
    policy.state_projector.calibrate(seen[keys.STATE] * 3.0 + 1.0)
    after = policy.value_only(seen)
    assert not torch.allclose(before, after)
    policy.save_pretrained(tmp_path)
    again = VLAPolicy.from_pretrained(tmp_path)
    assert again.state_projector.calibrated
    assert torch.equal(again.value_only(seen), after)


def test_without_a_state_there_is_nothing_to_normalise(make_policy):
    policy = make_policy()
    with pytest.raises(ValueError, match="normalize_state"):
        type(policy.config)(**{**vars(policy.config), "state_dim": 0, "normalize_state": True})


def test_every_action_reads_the_state_whatever_attention_finds(make_policy, observe):
    """A one-layer trunk may attend to its own placeholder alone; what it decides must still depend on the state."""
    policy = make_policy(observation="state")
    assert policy.config.state_in_actions
    with torch.no_grad():
        for layer in policy.language_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # nothing comes from other positions
    seen = observe(6)
    assert (policy.logits(seen).std(0).amax(-1) > 1e-4).all()  # in every dimension
    before = type(policy)(dataclasses.replace(policy.config, state_in_actions=False))
    before.load_state_dict(policy.state_dict())
    assert before.logits(seen).std(0).max() < 1e-6


def test_a_policy_saved_before_reads_the_state_as_it_did(make_policy, tmp_path):
    make_policy(observation="state").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["policy"].pop("state_in_actions") is True
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert VLAPolicy.from_pretrained(tmp_path).config.state_in_actions is False


def test_what_no_placeholder_can_read_is_refused(make_policy):
    config = make_policy().config
    for changes in ({"state_dim": 0}, {"decoding": "autoregressive", "attention": "causal"}):
        with pytest.raises(ValueError, match="state_in_actions=True"):
            dataclasses.replace(config, state_in_actions=True, **changes)


def test_an_action_prior_makes_an_untrained_policy_rest(make_policy, observe):
    policy = make_policy(observation="state", num_bins=8, action_prior=0.5)
    with torch.no_grad():
        policy.language_model.lm_head.weight.zero_()
    probability = policy.logits(observe(3)).softmax(-1)
    values = policy.actions.values.float()
    weight = torch.exp(-0.5 * (values / 0.5) ** 2)
    weight[:2] /= 2  # ids 0 and 1 decode alike
    torch.testing.assert_close(probability, (weight / weight.sum()).expand_as(probability))
    assert (probability @ values).abs().max() < 1e-6  # no drift
    acted = policy.act(observe(3), temperature=0.0)
    assert (acted[keys.ACTION_CHUNK] == 0).all()
    acted = policy.act(observe(200), temperature=1.0)
    torch.testing.assert_close(policy.evaluate_actions(acted)["log_probs"], acted[keys.LOG_PROBS], atol=1e-5, rtol=1e-5)


def test_action_prior_is_checked(make_policy):
    with pytest.raises(ValueError, match="action_prior"):
        make_policy(action_prior=-1.0)
