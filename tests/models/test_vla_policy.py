"""The policy: shapes, decoding, log-probabilities, padding, gradients, errors."""

import pytest
import torch
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.models.vla import ActionStatistics
from stare_lit.models.vla.presets import tiny
from stare_lit.types import Policy

PUSH, STACK = "push the cube to the goal", "stack the red cube on the green cube"
ALMOST = {"atol": 1e-5, "rtol": 0.0}


def test_satisfies_the_protocol(policy):
    assert isinstance(policy, Policy)
    assert policy.chunk_size == 2


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_act_writes_shapes_for_any_leading_dimensions(policy, observe, batch):
    td = policy.act(observe(*batch), temperature=1.0, value=True)
    assert td[keys.ACTION_TOKENS].shape == (*batch, 2, 7) and td[keys.ACTION_TOKENS].dtype == torch.int64
    assert td[keys.LOG_PROBS].shape == (*batch, 2, 7) and td[keys.LOG_PROBS].dtype == torch.float32
    assert td[keys.ACTION_CHUNK].shape == (*batch, 2, 7) and td[keys.ACTION_CHUNK].dtype == torch.float32
    assert td[keys.STATE_VALUE].shape == (*batch, 1)
    assert td[keys.INSTRUCTION_TOKENS].shape == (*batch, policy.config.prompt_length)
    out = policy.evaluate_actions(td, value=True)
    assert out["log_probs"].shape == out["entropy"].shape == (*batch, 2, 7) and out[keys.STATE_VALUE].shape == (*batch, 1)
    assert policy.logits(td).shape == (*batch, 2, 7, 16)
    assert policy.value_only(td).shape == (*batch, 1)
    assert not td[keys.LOG_PROBS].requires_grad


def test_leading_dimensions_do_not_change_the_result(policy, observe):
    flat, nested = observe(6), observe(2, 3)
    policy.act(flat, temperature=0.0), policy.act(nested, temperature=0.0)
    assert torch.equal(flat[keys.ACTION_TOKENS].view(2, 3, 2, 7), nested[keys.ACTION_TOKENS])


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_log_probs_of_act_are_those_of_evaluate(policy, observe, temperature):
    td = policy.act(observe(4), temperature=temperature, value=True)
    out = policy.evaluate_actions(td, temperature=temperature, value=True)
    torch.testing.assert_close(out["log_probs"], td[keys.LOG_PROBS], **ALMOST)
    torch.testing.assert_close(out[keys.STATE_VALUE], td[keys.STATE_VALUE], **ALMOST)
    torch.testing.assert_close(policy.value_only(td), td[keys.STATE_VALUE], **ALMOST)


def test_greedy_is_the_argmax_with_log_probs_at_temperature_one(policy, observe):
    td = policy.act(observe(4), temperature=0.0)
    assert torch.equal(policy.logits(td).argmax(-1), td[keys.ACTION_TOKENS])
    torch.testing.assert_close(policy.evaluate_actions(td)["log_probs"], td[keys.LOG_PROBS], **ALMOST)


def test_cached_decoding_equals_decoding_without_a_cache(make_policy, observe):
    policy = make_policy("autoregressive")
    cached = policy.act(observe(4), temperature=0.0)[keys.ACTION_TOKENS]
    td = observe(4).set(keys.ACTION_TOKENS, torch.zeros_like(cached))
    for i in range(14):  # token i from a full pass over the tokens before it
        td[keys.ACTION_TOKENS].flatten(1)[:, i] = policy.logits(td).argmax(-1).flatten(1)[:, i]
    assert torch.equal(td[keys.ACTION_TOKENS], cached)


def test_autoregressive_tokens_depend_on_those_before_only(make_policy, observe):
    policy = make_policy("autoregressive")
    td = policy.act(observe(2), temperature=1.0)
    before = policy.logits(td).flatten(1, 2)
    td[keys.ACTION_TOKENS].flatten(1)[:, 5] = (td[keys.ACTION_TOKENS].flatten(1)[:, 5] + 3) % 16
    after = policy.logits(td).flatten(1, 2)
    torch.testing.assert_close(before[:, :6], after[:, :6], **ALMOST)
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_padding_of_the_prompt_does_not_matter(policy, observe):
    td = policy.act(observe(4), temperature=1.0)  # two prompts of different lengths: the shorter one is padded
    for i in range(4):
        alone = policy.evaluate_actions(td[i : i + 1].exclude(keys.INSTRUCTION_TOKENS))
        torch.testing.assert_close(alone["log_probs"], policy.evaluate_actions(td)["log_probs"][i : i + 1], **ALMOST)


def test_the_instruction_changes_the_output(policy, observe):
    td = observe(2)
    td[keys.IMAGE][1], td[keys.STATE][1] = td[keys.IMAGE][0], td[keys.STATE][0]
    logits = policy.logits(policy.act(td, temperature=0.0))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_stored_prompt_tokens_stand_for_the_text(policy, observe):
    td = policy.act(observe(4), temperature=1.0)
    without_text = td.exclude(keys.INSTRUCTION)
    assert torch.equal(policy.logits(without_text), policy.logits(td))


def test_same_seed_same_tokens(policy, observe):
    drawn = [policy.act(observe(4), temperature=1.0, generator=torch.Generator().manual_seed(s))[keys.ACTION_TOKENS] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_sampling_follows_the_probabilities(make_policy, observe):
    policy = make_policy()
    one = observe(1)
    td = one.expand(4000).clone()
    tokens = policy.act(td, temperature=1.0, generator=torch.Generator().manual_seed(0))[keys.ACTION_TOKENS][:, 0, 0]
    expected = policy.logits(policy.act(one, temperature=0.0))[0, 0, 0].softmax(-1)
    assert (torch.bincount(tokens, minlength=16) / 4000 - expected).abs().max() < 0.03


def test_gradient_reaches_every_parameter(policy, observe):
    td = policy.act(observe(4), temperature=1.0)
    out = policy.evaluate_actions(td, value=True)
    (out["log_probs"].sum() + out["state_value"].sum()).backward()
    untouched = [name for name, parameter in policy.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
    assert untouched == []


def test_detached_value_leaves_the_trunk_alone(make_policy, observe):
    policy = make_policy(detach_value=True)
    policy.value_only(observe(2)).sum().backward()
    touched = {name.split(".")[0] for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert touched == {"value_head"}


def test_value_reads_privileged_signals_and_the_actor_does_not(make_policy, observe):
    policy = make_policy(value_signals=("tcp_to_object", "grasped"))
    td = policy.act(observe(3), temperature=0.0, value=True)
    other = observe(3)
    other[keys.signal("tcp_to_object")] += 0.1
    policy.act(other, temperature=0.0, value=True)
    assert torch.equal(td[keys.LOG_PROBS], other[keys.LOG_PROBS])
    assert not torch.allclose(td[keys.STATE_VALUE], other[keys.STATE_VALUE])
    with pytest.raises(ValueError, match="grasped"):
        policy.value_only(td.exclude(keys.signal("grasped")))
    policy.act(td.exclude(keys.SIGNALS), temperature=0.0)


def test_constant_dimensions_decode_to_their_constant(policy, observe):
    policy.set_action_statistics(ActionStatistics((-1.0,) * 3 + (0.25,) * 3 + (-1.0,), (1.0,) * 3 + (0.25,) * 3 + (1.0,), (True,) * 7))
    td = policy.act(observe(5), temperature=1.0)
    assert torch.equal(td[keys.ACTION_CHUNK][..., 3:6], torch.full((5, 2, 3), 0.25))
    out = policy.evaluate_actions(td)
    torch.testing.assert_close(out["log_probs"], td[keys.LOG_PROBS], **ALMOST)
    if policy.config.decoding == "parallel":  # no decision: certain, and never in the sequence
        assert td[keys.LOG_PROBS][..., 3:6].abs().max() == 0 and out["entropy"][..., 3:6].abs().max() == 0
        assert torch.equal(policy.encode_actions(td[keys.ACTION_CHUNK])[..., 3:6], td[keys.ACTION_TOKENS][..., 3:6])


@pytest.mark.parametrize("observation", ["image", "state"])
def test_bfloat16_weights_need_no_autocast(make_policy, observe, observation):
    policy = make_policy(observation=observation).to(torch.bfloat16)
    td = policy.act(observe(3), temperature=1.0, value=True)
    out = policy.evaluate_actions(td, value=True)
    assert out["log_probs"].dtype == out["state_value"].dtype == td[keys.LOG_PROBS].dtype == torch.float32
    torch.testing.assert_close(out["log_probs"], td[keys.LOG_PROBS], atol=0.1, rtol=0.0)


def test_bfloat16_autocast_gives_float32_outputs(policy, observe):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        td = policy.act(observe(3), temperature=1.0, value=True)
        out = policy.evaluate_actions(td, value=True)
    assert out["log_probs"].dtype == out["state_value"].dtype == td[keys.LOG_PROBS].dtype == torch.float32
    torch.testing.assert_close(out["log_probs"].exp().sum(), policy.evaluate_actions(td)["log_probs"].exp().sum(), atol=0.5, rtol=0.0)


def test_entropy_and_full_vocabulary(policy, observe):
    td = policy.act(observe(2), temperature=1.0)
    probabilities = torch.softmax(policy.logits(td).double() / 0.6, -1)
    torch.testing.assert_close(policy.evaluate_actions(td, temperature=0.6)["entropy"].double(), torch.special.entr(probabilities).sum(-1), **ALMOST)
    full = policy.logits(td, full_vocabulary=True)
    assert full.shape[-1] == policy.config.llm["vocab_size"] == policy.window_offset + 16
    assert torch.equal(full[..., policy.window_offset :], policy.logits(td))


def test_several_cameras_and_other_image_sizes(observe):
    policy = tiny(0, image_size=32, hidden_size=32, num_layers=1)
    td = observe(2, size=48)
    assert torch.isfinite(policy.act(td, temperature=0.0)[keys.LOG_PROBS]).all()
    from dataclasses import replace

    from stare_lit.models.vla import VLAPolicy

    two = VLAPolicy(replace(policy.config, cameras=("base", "hand")))
    td = TensorDict({keys.IMAGE: {"base": td[keys.IMAGE], "hand": td[keys.IMAGE]}, keys.INSTRUCTION: "lift the peg"}, [2])
    assert two.act(td, temperature=0.0)[keys.ACTION_TOKENS].shape == (2, 4, 7)


@pytest.mark.parametrize(("image_size", "decoding"), [(64, "parallel"), (96, "parallel"), (64, "autoregressive")])
def test_tiny_has_at_most_2_4_million_parameters(image_size, decoding):
    policy = tiny(32, image_size=image_size, decoding=decoding, chunk_size=8, num_bins=64, value_signals=("a", "b", "c", "d", "e"))
    assert sum(parameter.numel() for parameter in policy.parameters()) <= 2_400_000


def test_errors_name_what_is_wrong(policy, observe):
    td = observe(2)
    with pytest.raises(ValueError, match="state_dim=6"):
        policy.act(td.clone().set(keys.STATE, torch.zeros(2, 9)), temperature=0.0)
    with pytest.raises(ValueError, match="uint8"):
        policy.act(td.clone().set(keys.IMAGE, torch.zeros(2, 3, 32, 32)), temperature=0.0)
    with pytest.raises(ValueError, match="language_instruction"):
        policy.act(td.exclude(keys.INSTRUCTION), temperature=0.0)
    with pytest.raises(ValueError, match="observation.*image"):
        policy.act(td.exclude(keys.IMAGE), temperature=0.0)
    with pytest.raises(ValueError, match="temperature=-1"):
        policy.act(td, temperature=-1)
    with pytest.raises(ValueError, match="temperature=0"):
        policy.evaluate_actions(policy.act(td, temperature=0.0), temperature=0)
    td[keys.INSTRUCTION] = ["x " * 50, "y"]
    with pytest.raises(ValueError, match="prompt_length=24"):
        policy.act(td.exclude(keys.INSTRUCTION_TOKENS), temperature=0.0)


def test_without_a_tower_the_policy_reads_the_state_alone(make_policy, observe):
    policy = make_policy(observation="state")
    assert policy.environment == {"chunk_size": 2, "image_size": 32, "observation": "state"}
    seen, other = observe(4).exclude(keys.IMAGE), observe(4, seed=1).exclude(keys.IMAGE)
    td = policy.act(seen, temperature=1.0, value=True)
    out = policy.evaluate_actions(td, value=True)
    torch.testing.assert_close(out["log_probs"], td[keys.LOG_PROBS], **ALMOST)
    torch.testing.assert_close(policy.value_only(td), td[keys.STATE_VALUE], **ALMOST)
    assert not torch.allclose(policy.logits(td), policy.logits(other))


def test_a_policy_that_would_see_nothing_is_refused():
    with pytest.raises(ValueError, match="see nothing"):
        tiny(0, observation="state")


def test_film_lets_the_instruction_move_the_keypoints(make_policy, observe):
    td = observe(2, seed=3)  # two instructions
    td[keys.IMAGE] = td[keys.IMAGE][:1].expand(2, -1, -1, -1).clone()
    patches = {}
    for film in (False, True):
        policy = make_policy(keypoints=4, film=film)
        pictures = td[keys.IMAGE]
        words = policy._embed(policy.prompts([PUSH, STACK]))
        patches[film] = policy._patches(pictures[:, None], words, policy.prompts([PUSH, STACK]) != policy.config.pad_id)
    assert torch.equal(patches[False][0], patches[False][1])
    assert torch.equal(patches[True][0, :-1], patches[True][1, :-1])  # the coarse patches do not know the instruction
    assert not torch.allclose(patches[True][0, -1], patches[True][1, -1])


def test_film_does_not_read_the_padding_of_a_prompt(make_policy, observe):
    policy = make_policy(keypoints=4, film=True)
    td = observe(2)
    alone = observe(2)[:1]
    torch.testing.assert_close(policy.logits(policy.act(td, temperature=0.0))[:1], policy.logits(policy.act(alone, temperature=0.0)), **ALMOST)


def test_keypoints_find_a_dot(make_policy):
    """A map that answers to brightness puts its keypoint where the dot is (row and column, both -1..1)."""
    from stare_lit.models.vla.towers import Keypoints

    finder = Keypoints(channels=1, size=9, num=1, width=2, film=0)
    with torch.no_grad():
        finder.maps.weight.fill_(1.0), finder.maps.bias.zero_(), finder.output.weight.copy_(torch.eye(2)), finder.output.bias.zero_()
    picture = torch.zeros(1, 1, 9, 9)
    picture[0, 0, 2, 6] = 5.0
    row, column = -1 + 2 * 2 / 8, -1 + 6 * 2 / 8
    torch.testing.assert_close(finder(picture, None), torch.tensor([[[row, column]]]), atol=1e-3, rtol=0.0)


def test_keypoint_hidden_is_a_layer_between_positions_and_token(tmp_path):
    from stare_lit.models.vla import VLAPolicy

    policy = tiny(0, image_size=32, hidden_size=32, num_layers=1, channels=(8, 8, 8), keypoints=3, keypoint_hidden=5)
    (tower,) = policy.vision.towers
    assert [tuple(layer.weight.shape) for layer in tower.keypoints.output if hasattr(layer, "weight")] == [(5, 6), (32, 5)]
    with pytest.raises(ValueError, match="keypoint_hidden=5 without keypoints"):
        tiny(0, image_size=32, hidden_size=32, num_layers=1, channels=(8, 8, 8), keypoint_hidden=5)
    policy.save_pretrained(tmp_path)
    again = VLAPolicy.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())
