"""Ready-made policies, each one line of YAML: ``class_path: stare_lit.models.vla.presets.tiny``."""

from stare_lit.models.vla.config import TowerConfig, ValueHeadConfig, VLAConfig
from stare_lit.models.vla.policy import VLAPolicy

TEXT_VOCAB = 320
"""Ids of the tokenizer that ships; the action bins follow."""


def tiny(
    state_dim: int,
    *,
    image_size: int = 64,
    chunk_size: int = 4,
    num_bins: int = 32,
    hidden_size: int = 160,
    num_layers: int = 4,
    action_dim: int = 7,
    decoding: str = "parallel",
    value_signals: tuple[str, ...] = (),
    detach_value: bool = False,
) -> VLAPolicy:
    """About 1.5 M parameters, for two CPU cores: convolutional tower, one pass for a whole chunk.

    Args:
        state_dim: size of the proprioception vector; 0: none.
        image_size: side of the camera image, a multiple of 16 (64-96).
        chunk_size: actions per decision.
        num_bins: bin edges per action dimension; ``num_bins - 1`` values, so an even number gives one that is exactly the middle.
        hidden_size, num_layers: of the language model; heads are 32 wide.
        decoding: ``parallel`` (bidirectional attention) or ``autoregressive``.
        value_signals: privileged signals that the value head also reads in training.
        detach_value: keep the value loss from the shared trunk.
    """
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
                "initializer_range": 0.05,
                "pad_token_id": 0,
            },
            towers=(TowerConfig("conv_stem", {"width": hidden_size}),),
            image_size=image_size,
            state_dim=state_dim,
            action_dim=action_dim,
            chunk_size=chunk_size,
            num_bins=num_bins,
            decoding=decoding,
            attention="bidirectional" if decoding == "parallel" else "causal",
            prompt="{instruction}",
            prompt_length=24,
            value_head=ValueHeadConfig((128, 64), tuple(value_signals), detach_value),
        )
    )
