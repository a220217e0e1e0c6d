"""Where a policy comes from: every policy folder and every Lightning checkpoint names its ancestors, configuration and versions."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer

from stare_lit.algorithms.lora import merged_copy
from stare_lit.evaluation.report import command_line, hardware, package_versions, write_json

FILE = "provenance.json"
WEIGHTS = "model.safetensors"
CHECKPOINT_KEY = "provenance"


def fingerprint(folder: Path | str) -> str:
    """SHA-256 of the weights file of a policy folder, hexadecimal; ``sha256sum model.safetensors`` gives the same."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"folder={str(folder)!r}: holds no {WEIGHTS}; give a folder that save_pretrained wrote")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lineage(folder: Path | str) -> list[dict[str, Any]]:
    """Ancestors of the policy in ``folder``, oldest first, itself last: ``{fingerprint, phase, folder, ...}`` each.

    A folder without ``provenance.json`` (a policy from elsewhere) is its own first ancestor, of phase "unknown".

    Raises:
        ValueError: no policy there, or weights that are not those the record was written for.
    """
    own = fingerprint(folder)
    path = Path(folder) / FILE
    if not path.is_file():
        return [{"fingerprint": own, "phase": "unknown", "folder": str(folder)}]
    try:
        record = json.loads(path.read_text())
        if not {"fingerprint", "phase", "created", "global_step", "metrics", "ancestors"} <= record.keys():
            raise ValueError("it lacks entries")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"folder={str(folder)!r}: {FILE} is damaged ({error}); copy the whole folder again, or delete that file") from error
    if record["fingerprint"] != own:
        raise ValueError(
            f"folder={str(folder)!r}: {FILE} was written for other weights ({record['fingerprint'][:12]}, not {own[:12]}); copy the whole folder again"
        )
    itself = {name: record[name] for name in ("fingerprint", "phase", "created", "global_step", "metrics")}
    return [*record["ancestors"], {**itself, "folder": str(folder)}]


def describe(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The record of what ``module`` has become by now: phase, step, ancestors, configuration, command, versions, machine."""
    origin = getattr(module.policy, "origin", None)
    return {
        "phase": type(module).__module__.rpartition(".")[2],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "ancestors": lineage(origin) if origin is not None and (Path(origin) / WEIGHTS).is_file() else [],
        "config": _run_config(trainer) or {name: str(value) for name, value in module.hparams.items()},
        "command": command_line(),
        "versions": package_versions(),
        "hardware": hardware(),
    }


def _run_config(trainer: Trainer) -> dict[str, Any]:
    """The newest configuration in the run folder (``config.yaml``, ``config_2.yaml``, ... as ``stare fit`` writes them)."""
    written = sorted(Path(trainer.default_root_dir).glob("config*.yaml"), key=lambda path: path.stat().st_mtime_ns)
    return yaml.safe_load(written[-1].read_text()) if written else {}


def save_policy(policy: Any, folder: Path | str, record: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
    """``policy`` (adapters merged) and ``provenance.json`` into ``folder``, exchanged as a whole for what was there."""
    folder = Path(folder)
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    merged_copy(policy).save_pretrained(fresh)
    write_json(fresh / FILE, {"fingerprint": fingerprint(fresh), **record, "metrics": dict(metrics)})
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def all_finite(policy: torch.nn.Module) -> bool:
    """Whether no parameter or buffer holds a NaN or an infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in policy.state_dict().values() if tensor.is_floating_point())


class Provenance(Callback):
    """Writes the record into every Lightning checkpoint, under ``checkpoint["provenance"]``."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = json.loads(json.dumps(describe(trainer, pl_module), default=str))
