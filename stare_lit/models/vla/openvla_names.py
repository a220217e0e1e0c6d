"""Weight names of OpenVLA checkpoints <-> ours: one table of rules, pure, read in both directions.

Theirs are those of timm's vision transformers and of the official code (openvla/openvla, ``prismatic/extern/hf``); ours those of the transformers modules
in ``VLAPolicy``. A rule joins a few tensors of theirs with a few of ours, so that fused queries, keys and values and DINOv2's position of the class token
need no second place. ``{n}`` stands for the number of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]

DINO, SIGLIP, LLAMA = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer.", "language_model."
OUR_DINO, OUR_SIGLIP = "vision.towers.0.", "vision.towers.1."

OURS_ALONE = ("value_head.", "actions.")
"""What an OpenVLA checkpoint does not hold as weights: our value head, and the action statistics, which stand in its config."""


@dataclass(frozen=True)
class Rule:
    """Tensors ``theirs`` hold the same as our tensors ``ours``; ``read`` goes from theirs to ours, ``write`` back."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Tensors], Tensors]
    write: Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Depths:
    """Number of blocks that our modules have: those of a vision tower up to the one whose features are read, and the language model's."""

    dino: int
    siglip: int
    llama: int


def rules(depths: Depths) -> list[Rule]:
    """Every rule of a checkpoint of these ``depths``, in the order of its file."""
    return [
        *(_place(rule, DINO, OUR_DINO) for rule in _DINO),
        *(_place(rule, DINO + f"blocks.{n}.", OUR_DINO + f"layers.{n}.") for n in range(depths.dino) for rule in _DINO_BLOCK),
        *(_place(rule, SIGLIP, OUR_SIGLIP) for rule in _SIGLIP),
        *(_place(rule, SIGLIP + f"blocks.{n}.", OUR_SIGLIP + f"layers.{n}.") for n in range(depths.siglip) for rule in _SIGLIP_BLOCK),
        *(_place(rule, "projector.", "projector.") for rule in _PROJECTOR),
        *(_place(rule, LLAMA, LLAMA) for rule in _LLAMA),
        *(_place(rule, LLAMA + f"model.layers.{n}.", LLAMA + f"model.layers.{n}.") for n in range(depths.llama) for rule in _LLAMA_BLOCK),
    ]


def unused(depths: Depths) -> list[str]:
    """Names of theirs that influence no output, so that we build nothing for them: each tower's last block, final norm and attention pooling."""
    dino = [name for rule in _DINO_BLOCK for name in _place(rule, DINO + f"blocks.{depths.dino}.", "").theirs]
    siglip = [name for rule in _SIGLIP_BLOCK for name in _place(rule, SIGLIP + f"blocks.{depths.siglip}.", "").theirs]
    norms = [f"{tower}norm.{kind}" for tower in (DINO, SIGLIP) for kind in ("weight", "bias")]
    pool = [f"{SIGLIP}attn_pool.{part}.{kind}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    return [*dino, *siglip, *norms, *pool, f"{SIGLIP}attn_pool.latent"]


def compare(names: set[str], depths: Depths) -> tuple[list[str], list[str]]:
    """Names that a checkpoint with ``names`` lacks, and those it has too many, both sorted."""
    expected = {name for rule in rules(depths) for name in rule.theirs} | set(unused(depths))
    return sorted(expected - names), sorted(names - expected)


# ---- kinds of rules ------------------------------------------------------------------------------------------------------------------------------


def _same(theirs: str, ours: str) -> Rule:
    return Rule((theirs,), (ours,), lambda tensors: tensors, lambda tensors: tensors)


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [_same(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _fused(theirs: str, ours: tuple[str, str, str]) -> list[Rule]:
    """Queries, keys and values: rows of one matrix."""
    return [
        Rule(
            (f"{theirs}.{kind}",),
            tuple(f"{name}.{kind}" for name in ours),
            lambda tensors: tensors[0].chunk(3, dim=0),
            lambda tensors: (torch.cat(tensors, dim=0),),
        )
        for kind in ("weight", "bias")
    ]


def _read_positions(tensors: Tensors) -> Tensors:
    """Theirs has positions for patches alone; ours one for the class token in front, which is 0 then."""
    token, positions = tensors
    return token, torch.cat([torch.zeros_like(token), positions], dim=1)


def _write_positions(tensors: Tensors) -> Tensors:
    """The class token's position, which training may have moved, is added to the token."""
    token, positions = tensors
    return token + positions[:, :1], positions[:, 1:]


def _place(rule: Rule, theirs: str, ours: str) -> Rule:
    return Rule(tuple(theirs + name for name in rule.theirs), tuple(ours + name for name in rule.ours), rule.read, rule.write)


# ---- the table -----------------------------------------------------------------------------------------------------------------------------------

_DINO = [
    Rule(("cls_token", "pos_embed"), ("embeddings.cls_token", "embeddings.position_embeddings"), _read_positions, _write_positions),
    _same("reg_token", "embeddings.register_tokens"),
    *_linear("patch_embed.proj", "embeddings.patch_embeddings.projection"),
]
_DINO_BLOCK = [
    *_linear("norm1", "norm1"),
    *_fused("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    *_linear("attn.proj", "attention.o_proj"),
    _same("ls1.scale_factor", "layer_scale1.lambda1"),
    *_linear("norm2", "norm2"),
    *_linear("mlp.fc1", "mlp.fc1"),
    *_linear("mlp.fc2", "mlp.fc2"),
    _same("ls2.scale_factor", "layer_scale2.lambda1"),
]
_SIGLIP = [
    Rule(("pos_embed",), ("embeddings.position_embedding.weight",), lambda tensors: (tensors[0][0],), lambda tensors: (tensors[0][None],)),
    *_linear("patch_embed.proj", "embeddings.patch_embedding"),
]
_SIGLIP_BLOCK = [
    *_linear("norm1", "layer_norm1"),
    *_fused("attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    *_linear("attn.proj", "self_attn.out_proj"),
    *_linear("norm2", "layer_norm2"),
    *_linear("mlp.fc1", "mlp.fc1"),
    *_linear("mlp.fc2", "mlp.fc2"),
]
_PROJECTOR = [*_linear("fc1", "0"), *_linear("fc2", "2"), *_linear("fc3", "4")]
_LLAMA = [_same(name, name) for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")]
_LLAMA_BLOCK = [
    _same(f"{name}.weight", f"{name}.weight")
    for name in (
        "input_layernorm",
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        "post_attention_layernorm",
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
]
