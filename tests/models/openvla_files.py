"""The tiny OpenVLA checkpoint of the tests (tests/data/openvla_tiny/README.md says what it is) and how it is loaded."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from stare_lit.models.vla import VLAPolicy
from stare_lit.models.vla.openvla import load_openvla

FOLDER = Path(__file__).parents[1] / "data" / "openvla_tiny"
META = json.loads((FOLDER / "meta.json").read_text())
SUFFIX = (META["appended_token_id"],)


def vision() -> list[dict]:
    """The towers' sizes, which config.json cannot express (its timm names stand for the full-size ones)."""
    towers = META["vision_backbone"]
    sizes = [{"hidden_size": t["embed_dim"], "num_hidden_layers": t["depth"], "num_attention_heads": t["num_heads"]} for t in towers.values()]
    return [sizes[0], {**sizes[1], "intermediate_size": towers["fused_featurizer"]["mlp_hidden"]}]


def load_tiny(folder: Path = FOLDER, **settings) -> VLAPolicy:
    """The checkpoint in ``folder`` as a policy; it has no tokenizer of its own."""
    return load_openvla(str(folder), **{"tokenizer": "robot", "prompt_suffix": SUFFIX, "vision": vision(), **settings})


def copy_tiny(target: Path) -> Path:
    """A copy of the checkpoint's config and weights, to be damaged."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, target / name)
    return target


def golden() -> dict:
    """Inputs and outputs of the official code."""
    return load_file(FOLDER / "golden.safetensors")
