"""``config.json`` of an OpenVLA checkpoint <-> our ``VLAConfig`` and action statistics; pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stare_lit.models.vla.actions import ActionStatistics
from stare_lit.models.vla.config import TowerConfig, VLAConfig
from stare_lit.models.vla.presets import IMAGENET_MEAN, IMAGENET_STD

TOWERS: dict[str, dict[str, Any]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_so400m_patch14_siglip_224": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
    "vit_so400m_patch14_siglip_384": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
}
"""Sizes that the timm names in a checkpoint's config stand for."""

LLAMA: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
"""What ``text_config`` leaves out: the library's defaults when the checkpoints were written, with which they were trained."""

EXTRA = "stare_lit"
"""Key of ours in an exported config.json, only where the official fields cannot say it: vision sizes, prompt suffix, image preparation."""

OPENVLA_SUFFIX = (29871,)


def read_config(
    content: dict[str, Any],
    *,
    action_dim: int,
    tokenizer: str,
    normalisation: Sequence[dict[str, Any]] | None = None,
    vision: Sequence[dict[str, Any]] | None = None,
    prompt_suffix: tuple[int, ...] | None = None,
    **settings: Any,
) -> VLAConfig:
    """The policy that ``content``, a parsed config.json, describes.

    Args:
        content: of ``model_type`` "openvla", DINOv2 and SigLIP joined, Llama.
        action_dim: number of action dimensions.
        tokenizer: path of tokenizer.json.
        normalisation: ``mean`` and ``std`` for each tower, as preprocessor_config.json has them; None: ImageNet's and 0.5.
        vision: sizes of the two towers, where they are not those of their timm names.
        prompt_suffix: token ids after the prompt; None: OpenVLA's 29871.
        settings: further fields of ``VLAConfig``.

    Raises:
        ValueError: another kind of model, or a part that this package does not build.
    """
    for name, wanted in (("model_type", "openvla"), ("use_fused_vision_backbone", True), ("image_resize_strategy", "resize-naive")):
        if content.get(name) != wanted:
            raise ValueError(f"config.json: {name}={content.get(name)!r}; only {wanted!r} can be loaded (openvla/openvla-7b and what was fine-tuned from it)")
    names, sizes = content.get("timm_model_ids"), content.get("image_sizes")
    if not isinstance(names, list) or len(names) != 2 or "dinov2" not in str(names[0]) or not set(map(str, names)) <= TOWERS.keys():
        raise ValueError(f"config.json: timm_model_ids={names!r}; must be DINOv2 and SigLIP, of {', '.join(TOWERS)}")
    if any(content.get("timm_override_act_layers") or ()):
        raise ValueError(f"config.json: timm_override_act_layers={content['timm_override_act_layers']}; only models with their own activation can be loaded")
    if not isinstance(sizes, list) or len(sizes) != 2 or sizes[0] != sizes[1]:
        raise ValueError(f"config.json: image_sizes={sizes!r}; must be one number of pixels for both towers")
    extra = content.get(EXTRA, {})
    vision = vision or extra.get("vision") or ({}, {})
    normalisation = normalisation or ({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, {"mean": (0.5,) * 3, "std": (0.5,) * 3})
    if len(vision) != 2 or len(normalisation) != 2:
        raise ValueError(f"vision={vision!r}, normalisation={normalisation!r}: need one entry for each of the two towers")
    common = {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    own = ({**common, **TOWERS[names[0]], "num_register_tokens": 4}, {**common, **TOWERS[names[1]]})
    towers = tuple(
        TowerConfig(kind, {**base, **changes}, -2, tuple(values["mean"]), tuple(values["std"]))
        for kind, base, changes, values in zip(("dinov2_with_registers", "siglip_vision_model"), own, vision, normalisation, strict=True)
    )
    llm, pad_id = _language_model(content.get("text_config") or {}), content.get("pad_token_id", 32000)
    suffix = tuple(prompt_suffix if prompt_suffix is not None else extra.get("prompt_suffix", OPENVLA_SUFFIX))
    for name, value in (("prompt_suffix", max(suffix, default=0)), ("pad_token_id", pad_id)):
        if value >= llm["vocab_size"]:
            raise ValueError(f"{name}={value}: the vocabulary of this checkpoint has {llm['vocab_size']} ids; give a smaller one")
    return VLAConfig(
        llm={**llm, "pad_token_id": pad_id},
        towers=towers,
        image_size=sizes[0],
        projector="openvla",
        action_dim=action_dim,
        num_bins=content.get("n_action_bins", 256),
        vocab_padding=content.get("pad_to_multiple_of", 64),
        prompt_suffix=suffix,
        bos_id=(content.get("text_config") or {}).get("bos_token_id", 1),
        pad_id=pad_id,
        tokenizer=tokenizer,
        **{**extra.get("images", {}), **settings},
    )


def _language_model(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("model_type", "llama") != "llama":
        raise ValueError(f"config.json: text_config.model_type={given['model_type']!r}; only 'llama' can be loaded")
    known = (*LLAMA, "num_key_value_heads", "head_dim", "hidden_act")
    llm = {**LLAMA, **{name: given[name] for name in known if given.get(name) is not None}}
    if given.get("tie_word_embeddings"):
        raise ValueError("config.json: text_config.tie_word_embeddings=True; only an output head of its own can be loaded")
    scaling = {"rope_type" if name == "type" else name: value for name, value in (given.get("rope_scaling") or {}).items()}
    rope = {"rope_type": "default", **scaling, "rope_theta": given.get("rope_theta", 10000.0)}
    return llm if rope == {"rope_type": "default", "rope_theta": 10000.0} else {**llm, "rope_parameters": rope}


def extras(config: VLAConfig, content: dict[str, Any]) -> dict[str, Any]:
    """What of ``config`` an official config.json ``content`` cannot say, for ``EXTRA``; empty for the published sizes."""
    result: dict[str, Any] = {}
    vision = [
        {name: value for name, value in tower.kwargs.items() if name in TOWERS[timm] and value != TOWERS[timm][name]}
        for tower, timm in zip(config.towers, content["timm_model_ids"], strict=True)
    ]
    if any(vision):
        result["vision"] = vision
    if config.prompt_suffix != OPENVLA_SUFFIX:
        result["prompt_suffix"] = list(config.prompt_suffix)
    defaults = {field.name: field.default for field in dataclasses.fields(VLAConfig)}
    images = {name: getattr(config, name) for name in ("image_kernel", "image_crop") if getattr(config, name) != defaults[name]}
    if images:
        result["images"] = images
    return result


def choose_statistics(norm_stats: dict[str, Any], key: str | None) -> tuple[str, ActionStatistics]:
    """The entry ``key`` of a checkpoint's ``norm_stats`` (None: the only one there is). Raises ValueError that lists the keys there are."""
    if not isinstance(norm_stats, dict) or not norm_stats:
        raise ValueError("config.json: holds no norm_stats, so no action statistics; a checkpoint that can act has them")
    if key is None and len(norm_stats) == 1:
        key = next(iter(norm_stats))
    if key not in norm_stats:
        raise ValueError(f"unnorm_key={key!r}: choose the action statistics of one of {', '.join(sorted(norm_stats))}")
    try:
        action = norm_stats[key]["action"]
        mask = action.get("mask") or [True] * len(action["q01"])
        return key, ActionStatistics(tuple(map(float, action["q01"])), tuple(map(float, action["q99"])), tuple(map(bool, mask)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.json: norm_stats[{key!r}] has no q01 and q99 of actions ({error!r}); choose another unnorm_key") from error


def with_open_fraction(statistics: ActionStatistics) -> ActionStatistics:
    """For a gripper that the checkpoint writes as 0 (closed) to 1 (open), as it is: the environments' -1 to 1, by the affine map 2 c - 1 of a bin centre c.

    Raises ValueError where the last dimension is normalised, so written otherwise.
    """
    if statistics.mask[-1]:
        raise ValueError("gripper='open_fraction': these action statistics normalise the last dimension, so it is no fraction; choose 'native'")
    q01, q99, mask = ((*values[:-1], last) for values, last in ((statistics.q01, -3.0), (statistics.q99, 1.0), (statistics.mask, True)))
    return ActionStatistics(q01, q99, mask)  # (c + 1) / 2 (q99 - q01) + q01


def with_statistics(norm_stats: dict[str, Any], statistics: ActionStatistics, key: str | None) -> tuple[str, dict[str, Any]]:
    """The key under which ``norm_stats`` hold ``statistics``, and ``norm_stats``: with a new entry ``key`` ("stare_lit") where none says the same."""
    for name in norm_stats if key is None else [key]:
        if isinstance(norm_stats.get(name, {}).get("action"), dict) and choose_statistics(norm_stats, name)[1] == statistics:
            return name, norm_stats
    key = key or EXTRA
    entry = {"q01": list(statistics.q01), "q99": list(statistics.q99), "mask": list(statistics.mask)}
    return key, {**norm_stats, key: {"action": entry}}
