"""Policies on disk: a folder with config.json, tokenizer.json, model.safetensors and, where there are any, attachments. Nothing is ever unpickled."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stare_lit.models.vla.config import VLAConfig
from stare_lit.models.vla.value_head import ValueHead

if TYPE_CHECKING:
    from stare_lit.models.vla.policy import VLAPolicy

FORMAT = "stare_lit.VLAPolicy"
VERSION = 1
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
ATTACHMENTS = "attachments"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of weights as a command line names it; ``auto``: as saved."""


def parse_dtype(dtype: str | None) -> torch.dtype | None:
    """A dtype of weights by its name; None stays. Raises ValueError for any other."""
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: choose float32, float16 or bfloat16")
    return None if dtype is None else getattr(torch, dtype)


def save(policy: "VLAPolicy", folder: Path, dtype: str | None) -> None:
    """Write ``policy``; each file appears whole or not at all, and config.json, written last, holds the checksums."""
    kind = parse_dtype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (tensor.to(kind) if kind and tensor.is_floating_point() and not name.startswith("actions.") else tensor).detach().cpu().contiguous()
        for name, tensor in policy.state_dict().items()
    }
    places = [tensor.untyped_storage().data_ptr() for tensor in weights.values()]
    weights = {name: tensor.clone() if places.count(place) > 1 else tensor for (name, tensor), place in zip(weights.items(), places, strict=True)}  # tied
    temporary = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(weights, temporary, metadata={"format": FORMAT})
    checksum = _sha256(temporary)
    os.replace(temporary, folder / WEIGHTS)
    _write_bytes(folder / TOKENIZER, policy.prompts.json.encode())
    config = {"format": FORMAT, "version": VERSION, "sha256": checksum, "policy": policy.config.to_dict()}
    if policy.attachments:
        (folder / ATTACHMENTS).mkdir(exist_ok=True)
        for name, data in policy.attachments.items():
            _write_bytes(folder / ATTACHMENTS / name, data)
        config[ATTACHMENTS] = {name: hashlib.sha256(data).hexdigest() for name, data in policy.attachments.items()}
    _write_bytes(folder / CONFIG, json.dumps(config, indent=1).encode())


def load(cls: type["VLAPolicy"], folder: Path, dtype: str | None = "float32", value_signals: Sequence[str] | None = None) -> "VLAPolicy":
    """Inverse of ``save``, with a new value head where that is to read other signals.

    Raises ValueError for a folder that is missing, of another program, damaged, or of another version.
    """
    kind = parse_dtype(dtype)
    content = _read_config(folder)
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ValueError(f"path={str(folder)!r}: holds no {name}; copy the whole folder that save_pretrained wrote")
    if _sha256(folder / WEIGHTS) != content.get("sha256"):
        raise ValueError(f"path={str(folder)!r}: the checksum of {WEIGHTS} does not fit {CONFIG}: damaged, or of two different policies; save or copy it again")
    config = VLAConfig.from_dict(content.get("policy", {}))
    with nullcontext() if dtype == "float32" else empty_parameters():
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
    if dtype == "float32":
        policy.load_state_dict(weights)
    else:
        exact = ("actions.", "value_head.")
        kept = {name: tensor.float() if name.startswith("value_head.") else tensor for name, tensor in weights.items() if name.startswith(exact)}
        policy.load_state_dict(kept | {name: tensor.to(kind) if kind else tensor for name, tensor in weights.items() if name not in kept}, assign=True)
        policy.language_model.tie_weights()  # assigned, what was one tensor would be two
    policy.attachments = _read_attachments(folder, content.get(ATTACHMENTS, {}))
    policy.origin = folder
    if value_signals is not None and tuple(value_signals) != config.value_head.signals:
        head = dataclasses.replace(config.value_head, signals=tuple(value_signals))
        policy.config = dataclasses.replace(policy.config, value_head=head)
        policy.value_head = ValueHead(config.llm["hidden_size"], head)
    return policy


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules made here get parameters without memory and without values (buffers are real), for weights of many gigabytes that are read next."""
    with init_empty_weights(include_buffers=False):
        yield


def _read_attachments(folder: Path, checksums: dict[str, str]) -> dict[str, bytes]:
    files = {}
    for name, checksum in checksums.items():
        path = folder / ATTACHMENTS / Path(name).name
        files[name] = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(files[name]).hexdigest() != checksum:
            raise ValueError(f"path={str(folder)!r}: {ATTACHMENTS}/{name} is missing or damaged; copy the whole folder that save_pretrained wrote")
    return files


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


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
