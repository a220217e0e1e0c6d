"""Ready-made policies, each one line of YAML: ``class_path: stare_lit.models.vla.presets.tiny``."""

from typing import Literal

from stare_lit.models.vla.config import STEM_CHANNELS, TowerConfig, ValueHeadConfig, VLAConfig
from stare_lit.models.vla.policy import VLAPolicy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TEXT_VOCAB = 320
"""Ids of the tokenizer that ships; the action bins follow."""


def tiny(
    state_dim: int,
    *,
    image_size: int = 64,
    chunk_size: int = 4,
    num_bins: int = 32,
    action_prior: float = 0.0,
    hidden_size: int = 192,
    num_layers: int = 3,
    channels: tuple[int, ...] = STEM_CHANNELS,
    keypoints: int = 0,
    keypoint_hidden: int = 0,
    film: bool = False,
    cameras: tuple[str, ...] = (),
    observation: Literal["image", "state"] = "image",
    normalize_state: bool = False,
    action_dim: int = 7,
    decoding: Literal["parallel", "autoregressive"] = "parallel",
    value_signals: tuple[str, ...] = (),
    detach_value: bool = False,
) -> VLAPolicy:
    """About 1.7 M parameters, for two CPU cores: convolutional tower, one pass for a whole chunk.

    Args:
        state_dim: size of the proprioception vector; 0: none.
        image_size: side of the camera image, a multiple of a patch (64-96 pixels).
        chunk_size: actions per decision.
        num_bins: bin edges per action dimension; ``num_bins - 1`` values, so an even number gives one that is exactly the middle.
        action_prior: standard deviation of the normal distribution that an untrained policy draws actions from; 0: any bin is as likely.
        hidden_size, num_layers: of the language model; heads are 32 wide.
        channels: of the tower's stride-2 convolutions: a patch is ``2 ** len(channels)`` pixels wide (three of them do for a 32-pixel image).
        keypoints: spatial-softmax positions that the tower adds as one token (see ``ConvStem``); 0: none.
        keypoint_hidden: width of a hidden layer before that token; 0: none.
        cameras: of the environment, by name, all seen through the same tower; none is its robot's own one.
        film: let the instruction say what the keypoints look for.
        observation: ``state`` is without a tower, for the privileged low-dimensional variant of an environment; every action then reads it directly.
        normalize_state: by mean and standard deviation, which the ``StateStatistics`` callback takes before training.
        decoding: ``parallel`` (bidirectional attention) or ``autoregressive``.
        value_signals: privileged signals that the value head also reads in training.
        detach_value: keep the value loss from the shared trunk.
    """
    seen = {"channels": list(channels), "width": hidden_size, "keypoints": keypoints, "keypoint_hidden": keypoint_hidden, "film": hidden_size * film}
    tower = TowerConfig("conv_stem", seen)
    return VLAPolicy(
        VLAConfig(
            llm={
                "vocab_size": TEXT_VOCAB + num_bins,
                "hidden_size": hidden_size,
                "intermediate_size": hidden_size * 8 // 3 // 16 * 16,
                "num_hidden_layers": num_layers,
                "num_attention_heads": hidden_size // 32,
                "num_key_value_heads": hidden_size // 32,
                "max_position_embeddings": 512,
                "initializer_range": 0.05,  # at 0.02 a small trunk stays at the label prior for hundreds of updates
                "pad_token_id": 0,
            },
            towers=(tower,) if observation == "image" else (),
            image_size=image_size,
            cameras=tuple(cameras),
            state_dim=state_dim,
            normalize_state=normalize_state,
            state_in_actions=observation == "state" and decoding == "parallel",
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_bins=num_bins,
            action_prior=action_prior,
            decoding=decoding,
            attention="bidirectional" if decoding == "parallel" else "causal",
            attention_kernel="eager",
            prompt="{instruction}",
            prompt_length=24,
            value_head=ValueHeadConfig((128, 64), tuple(value_signals), detach_value),
        )
    )


def openvla_7b_config(tokenizer: str = "robot") -> VLAConfig:
    """OpenVLA-7B (``openvla/openvla-7b``): DINOv2-L with registers and SigLIP-so400m at 224 px, Llama-2-7B, 256 bins.

    ``tokenizer`` is the path of Llama's ``tokenizer.json``; the one that ships serves for work on random weights only.
    """
    return _openvla_config(
        image_size=224,
        dino={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        siglip={"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
        llm={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064},
        pad_id=32000,
        suffix=29871,
        tokenizer=tokenizer,
    )


def openvla_tiny_config() -> VLAConfig:
    """The same layout with random-weight sizes of a test: 0.4 M parameters, 56 px."""
    return _openvla_config(
        image_size=56,
        dino={"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        siglip={"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 179},
        llm={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
        pad_id=448,
        suffix=187,
        tokenizer="robot",
    )


def _openvla_config(*, image_size: int, dino: dict, siglip: dict, llm: dict, pad_id: int, suffix: int, tokenizer: str) -> VLAConfig:
    common = {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    return VLAConfig(
        llm={**llm, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "pad_token_id": pad_id},
        towers=(
            TowerConfig("dinov2_with_registers", {**common, **dino, "num_register_tokens": 4}, -2, IMAGENET_MEAN, IMAGENET_STD),
            TowerConfig("siglip_vision_model", {**common, **siglip}, -2),
        ),
        image_size=image_size,
        projector="openvla",
        vocab_padding=64,
        prompt_suffix=(suffix,),
        pad_id=pad_id,
        tokenizer=tokenizer,
    )
