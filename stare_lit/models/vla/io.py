"""Policies on disk: a folder with config.json, tokenizer.json and model.safetensors. Nothing is ever unpickled."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stare_lit.models.vla.config import VLAConfig

if TYPE_CHECKING:
    from stare_lit.models.vla.policy import VLAPolicy

FORMAT = "stare_lit.VLAPolicy"
VERSION = 1
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


def save(policy: "VLAPolicy", folder: Path, dtype: str) -> None:
    """Write ``policy``; each file appears whole or not at all, and config.json, written last, holds the weights' checksum."""
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: choose float32, float16 or bfloat16")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() and not name.startswith("actions.") else tensor).detach().cpu().contiguous()
        for name, tensor in policy.state_dict().items()
    }
    temporary = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(weights, temporary, metadata={"format": FORMAT})
    checksum = _sha256(temporary)
    os.replace(temporary, folder / WEIGHTS)
    _write_text(folder / TOKENIZER, policy.prompts.json)
    config = {"format": FORMAT, "version": VERSION, "sha256": checksum, "policy": policy.config.to_dict()}
    _write_text(folder / CONFIG, json.dumps(config, indent=1))


def load(cls: type["VLAPolicy"], folder: Path) -> "VLAPolicy":
    """Inverse of ``save``. Raises ValueError for a folder that is missing, of another program, damaged, or of another version."""
    content = _read_config(folder)
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ValueError(f"path={str(folder)!r}: holds no {name}; copy the whole folder that save_pretrained wrote")
    if _sha256(folder / WEIGHTS) != content.get("sha256"):
        raise ValueError(f"path={str(folder)!r}: the checksum of {WEIGHTS} does not fit {CONFIG}: damaged, or of two different policies; save or copy it again")
    config = VLAConfig.from_dict(content.get("policy", {}))
    policy = cls(dataclasses.replace(config, tokenizer=str(folder / TOKENIZER)))
    policy.config = config if config.tokenizer == "robot" else policy.config
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"path={str(folder)!r}: {WEIGHTS} is no safetensors file ({error})") from error
    expected = policy.state_dict()
    missing, foreign = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if missing or foreign or wrong:
        raise ValueError(f"path={str(folder)!r}: weights do not fit the config: missing {missing[:5]}, left over {foreign[:5]}, other shape {wrong[:5]}")
    policy.load_state_dict(weights)
    return policy


def _read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise ValueError(f"path={str(folder)!r}: no such folder; give one that VLAPolicy.save_pretrained wrote")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"path={str(folder)!r}: holds no {CONFIG} (pickled checkpoints are never read); give a folder that save_pretrained wrote")
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"path={str(folder)!r}: {CONFIG} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = content.get("model_type", "unknown") if isinstance(content, dict) else "unknown"
        raise ValueError(f"path={str(folder)!r}: a checkpoint of another program (model_type {kind!r}); give a folder that VLAPolicy.save_pretrained wrote")
    if content.get("version") != VERSION:
        raise ValueError(f"path={str(folder)!r}: saved in format version {content.get('version')}, this version of stare_lit reads {VERSION}")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
