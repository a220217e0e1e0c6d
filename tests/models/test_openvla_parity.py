"""Same numbers as the official code: float32, at most 1e-5 apart off the padding, tokens exactly, actions at most 1e-7 apart."""

import pytest
import torch
from openvla_files import META, golden, load_tiny
from tensordict import TensorDict
from torch.nn import functional as F

from stare_lit import keys
from stare_lit.objectives.imitation import action_token_cross_entropy

TOLERANCE, ACTION_TOLERANCE = 1e-5, 1e-7
TEXT_VOCAB, NUM_BINS = META["text_vocab_size"], META["n_action_bins"]
FIRST_ACTION_ID = TEXT_VOCAB - NUM_BINS


@pytest.fixture(scope="module")
def reference():
    return golden()


@pytest.fixture(scope="module")
def policy():
    return load_tiny().eval()


@pytest.fixture(scope="module")
@torch.no_grad()
def forward(policy, reference):
    """Features, patches, hidden states and logits of the reference's batch, through the policy's own parts."""
    features = policy.vision.features(list(reference["pixel_values"].split(3, dim=1)))
    patches, text = policy.projector(features), policy._embed(reference["input_ids"])
    embeddings = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
    hidden = policy._forward(embeddings, reference["multimodal_attention_mask"].bool())
    return {"patch_features": features, "projector_output": patches, "last_hidden_state": hidden, "logits": policy._lm_head(hidden)}


def apart(ours, theirs):
    return (ours.double() - theirs.double()).abs().max().item()


@pytest.fixture
def observation(policy, reference, monkeypatch):
    """Sample 0 with its prompt as generation saw it; the reference's images are noise that no uint8 image can hold."""
    monkeypatch.setattr(policy.vision.prepare, "forward", lambda images: list(reference["pixel_values"][:1].split(3, dim=1)))
    prompt = torch.full((1, policy.config.prompt_length), policy.config.pad_id)
    prompt[0, -reference["gen_input_ids"].shape[1] + 1 :] = reference["gen_input_ids"][0, 1:]
    return TensorDict({keys.IMAGE: torch.zeros(1, 3, 56, 56, dtype=torch.uint8), keys.INSTRUCTION_TOKENS: prompt}, [1])


@pytest.mark.parametrize("name", ["patch_features", "projector_output"])
def test_vision_and_projector(forward, reference, name):
    assert apart(forward[name], reference[name]) <= TOLERANCE


@pytest.mark.parametrize("name", ["last_hidden_state", "logits"])
def test_language_model_off_the_padding(forward, reference, name):
    valid = reference["multimodal_attention_mask"].bool()
    assert apart(forward[name][valid], reference[name][valid]) <= TOLERANCE


def test_loss(forward, reference):
    """Over all 512 ids; our objective, which is handed the positions that predict, says the same."""
    logits, labels = forward["logits"][:, :-1], reference["multimodal_labels"][:, 1:]
    assert apart(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), reference["loss"]) <= TOLERANCE
    counts = labels != -100
    ours = action_token_cross_entropy(
        logits[counts][:, None, None], labels[counts][:, None, None], action_is_pad=torch.zeros(int(counts.sum()), 1, dtype=torch.bool)
    )
    assert apart(ours.mean, reference["loss"]) <= TOLERANCE


def test_greedy_tokens_and_action(policy, observation, reference):
    policy.act(observation, temperature=0.0, value=True)
    assert torch.equal(observation[keys.ACTION_TOKENS][0, 0] + policy.window_offset, reference["generated_ids"])
    assert apart(observation[keys.ACTION_CHUNK][0, 0], reference["action"]) <= ACTION_TOLERANCE
    assert apart(policy.actions.values[observation[keys.ACTION_TOKENS][0, 0]], reference["action_normalized"]) <= ACTION_TOLERANCE
    assert observation[keys.STATE_VALUE].item() == 0.0  # a fresh value head


@torch.no_grad()
def test_logits_of_every_step(policy, observation, reference):
    """Teacher forced in one pass, where the official run fed one token after another."""
    observation[keys.ACTION_TOKENS] = (reference["generated_ids"] - policy.window_offset).view(1, 1, 7)
    assert apart(policy.logits(observation, full_vocabulary=True)[0, 0], reference["gen_step_logits"]) <= TOLERANCE
    window = policy.logits(observation)[0, 0]
    assert apart(window, reference["gen_step_logits"][:, FIRST_ACTION_ID:TEXT_VOCAB]) <= TOLERANCE


def test_prompts_of_different_lengths_in_one_batch(policy, observation, reference, monkeypatch):
    """Padding on the left, ours, moves nothing: sample 0 beside a longer prompt decodes to the same tokens."""
    pixels = reference["pixel_values"]
    monkeypatch.setattr(policy.vision.prepare, "forward", lambda images: list(pixels.split(3, dim=1)))
    longer = observation[keys.INSTRUCTION_TOKENS].clone()
    longer[0, -30:-12] = 5
    both = TensorDict(
        {keys.IMAGE: torch.zeros(2, 3, 56, 56, dtype=torch.uint8), keys.INSTRUCTION_TOKENS: torch.cat([observation[keys.INSTRUCTION_TOKENS], longer])}, [2]
    )
    policy.act(both, temperature=0.0)
    assert torch.equal(both[keys.ACTION_TOKENS][0, 0] + policy.window_offset, reference["generated_ids"])
    assert apart(both[keys.ACTION_CHUNK][0, 0], reference["action"]) <= ACTION_TOLERANCE


def test_decoding_of_any_id(policy, reference):
    """The official decoding takes every id; ids outside the action window count as its nearest end."""
    window = (reference["decode_token_ids"] - policy.window_offset).clamp(0, NUM_BINS - 1)
    assert apart(policy.decode_actions(window), reference["decode_actions"]) <= ACTION_TOLERANCE


def test_the_window_is_the_official_one(policy):
    assert policy.window_offset == FIRST_ACTION_ID == 192
