"""The table of weight names: pure, complete, and its own inverse."""

import torch
from openvla_files import FOLDER, load_tiny
from safetensors.torch import load_file

from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.openvla_names import OURS_ALONE, Depths, compare, rules, unused
from stare_lit.models.vla.presets import openvla_7b_config

TINY, FULL = Depths(2, 2, 2), Depths(23, 26, 32)
PUBLISHED_PARAMETERS = 7_541_237_184  # openvla/openvla-7b: 15,082,474,368 bytes of bfloat16


def test_every_name_of_the_checkpoint_has_one_place():
    theirs = [name for rule in rules(TINY) for name in rule.theirs] + unused(TINY)
    assert len(theirs) == len(set(theirs)) == 130
    assert set(theirs) == set(load_file(FOLDER / "model.safetensors"))


def test_every_weight_of_ours_has_one_place():
    for depths, policy in ((TINY, load_tiny()), (FULL, full_policy())):
        ours = [name for rule in rules(depths) for name in rule.ours]
        assert len(ours) == len(set(ours))
        assert set(ours) == {name for name in policy.state_dict() if not name.startswith(OURS_ALONE)}


def full_policy() -> VLAPolicy:
    with torch.device("meta"):
        return VLAPolicy(openvla_7b_config())


def test_the_published_model_has_as_many_parameters():
    """Ours, written in their names, with the last blocks that we do not build (as wide as the first), norms and attention pooling."""
    ours = full_policy().state_dict()
    theirs = {name: tensor for rule in rules(FULL) for name, tensor in zip(rule.theirs, rule.write(tuple(ours[n] for n in rule.ours)), strict=True)}
    count = sum(tensor.numel() for tensor in theirs.values())
    for name in unused(FULL):
        twin = name.replace("featurizer.blocks.23.", "featurizer.blocks.0.").replace("fused_featurizer.blocks.26.", "fused_featurizer.blocks.0.")
        count += theirs[twin].numel() if twin in theirs else 0
    width, wide = 1152, 4304
    pool = 4 * width * width + 4 * width + 2 * width * wide + wide + width + 2 * width + width  # q, kv, proj; two-layer MLP; norm; latent
    assert count + pool + 2 * 1024 + 2 * width == PUBLISHED_PARAMETERS


def test_reading_and_writing_are_inverse():
    theirs = load_file(FOLDER / "model.safetensors")
    for rule in rules(TINY):
        before = tuple(theirs[name] for name in rule.theirs)
        ours = rule.read(before)
        assert len(ours) == len(rule.ours)
        assert all(torch.equal(a, b) for a, b in zip(rule.write(ours), before, strict=True)), rule.theirs


def test_fused_rows_are_queries_keys_values():
    rule = next(rule for rule in rules(TINY) if rule.theirs == ("vision_backbone.featurizer.blocks.1.attn.qkv.bias",))
    assert [name.rpartition(".attention.")[2] for name in rule.ours] == ["q_proj.bias", "k_proj.bias", "v_proj.bias"]
    assert [part.tolist() for part in rule.read((torch.arange(6),))] == [[0, 1], [2, 3], [4, 5]]


def test_a_trained_position_of_the_class_token_is_added_to_it():
    rule = next(rule for rule in rules(TINY) if "vision_backbone.featurizer.cls_token" in rule.theirs)
    token, positions = torch.full((1, 1, 2), 3.0), torch.tensor([[[1.0, 1.0], [7.0, 8.0]]])
    written = rule.write((token, positions))
    assert written[0].tolist() == [[[4.0, 4.0]]] and written[1].tolist() == [[[7.0, 8.0]]]
    assert torch.equal(sum(part[:, :1] for part in rule.read(written)), token + positions[:, :1])  # what the tower sees is the same


def test_compare_lists_both_sides():
    names = {name for rule in rules(TINY) for name in rule.theirs} | set(unused(TINY))
    assert compare(names, TINY) == ([], [])
    assert compare(names - {"projector.fc2.bias"} | {"b.x", "a.x"}, TINY) == (["projector.fc2.bias"], ["a.x", "b.x"])
