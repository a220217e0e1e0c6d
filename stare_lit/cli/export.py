"""``stare export``: a saved policy in the layout of the program that its weights came from."""

from typing import Literal


def export(checkpoint: str, out: str, dtype: Literal["float32", "bfloat16", "float16"] | None = None, unnorm_key: str | None = None) -> None:
    """Write a policy that was fine-tuned from OpenVLA as an OpenVLA checkpoint: safetensors shards, config.json with norm_stats, tokenizer.

    The value head has no place in that layout and is left out.

    Args:
        checkpoint: policy folder (``runs/.../best``).
        out: folder to write; must be absent or empty.
        dtype: of the weights; null: as in the policy folder.
        unnorm_key: name of the action statistics in norm_stats; null: that which holds them already, else stare_lit.
    """
    from stare_lit.evaluation.report import console
    from stare_lit.models.vla import VLAPolicy
    from stare_lit.models.vla.openvla import export_openvla

    policy = VLAPolicy.from_pretrained(checkpoint, dtype=None)
    key = export_openvla(policy, out, dtype=dtype, unnorm_key=unnorm_key)
    console().print(f"written to {out}; unnorm_key={key!r}")
