"""OpenVLA checkpoints (``openvla/openvla-7b`` and what was fine-tuned from it) as our policy, one line of YAML, and back (``stare export``).

None of the checkpoint's own code is run, and of its files only JSON and safetensors are read.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from stare_lit.models.vla.config import ValueHeadConfig, VLAConfig
from stare_lit.models.vla.io import empty_parameters, parse_dtype
from stare_lit.models.vla.openvla_config import EXTRA, choose_statistics, extras, read_config, with_open_fraction, with_statistics
from stare_lit.models.vla.openvla_names import Depths, compare, rules, unused
from stare_lit.models.vla.policy import VLAPolicy
from stare_lit.models.vla.shards import MAX_SHARD_BYTES, Shards, write_shards
from stare_lit.models.vla.value_head import ValueHead

log = logging.getLogger(__name__)

CONFIG, STATISTICS, TOKENIZER, PROCESSOR = "config.json", "dataset_statistics.json", "tokenizer.json", "preprocessor_config.json"
UNUSED = "openvla.unused.safetensors"
PREFIX = "openvla.file."
HEAD = "language_model.lm_head.weight"
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "generation_config.json", PROCESSOR, "*.py")
"""What other programs want beside the weights: carried along as bytes, the code never run."""


def load_openvla(
    path: str,
    unnorm_key: str | None = None,
    *,
    gripper: Literal["native", "open_fraction"] = "native",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    download: bool = False,
    revision: str | None = None,
    seed: int = 0,
    tokenizer: str | None = None,
    prompt_suffix: tuple[int, ...] | None = None,
    vision: list[dict[str, Any]] | None = None,
    image_kernel: Literal["bicubic", "lanczos"] = "bicubic",
    image_crop: float = 1.0,
    chunk_size: int = 1,
    value_signals: tuple[str, ...] = (),
    detach_value: bool = False,
) -> VLAPolicy:
    """The policy of an OpenVLA checkpoint, with a fresh value head.

    Args:
        path: folder of the checkpoint, or its name on the Hub (``openvla/openvla-7b``), which is looked up in the Hub's cache.
        unnorm_key: whose action statistics to use, of those in the checkpoint (``bridge_orig``); null: the only ones there are.
        gripper: how the checkpoint writes it: ``native`` as the environments (-1 closes, 1 opens); ``open_fraction`` from 0 (closed) to 1 (open), as in
            ``bridge_orig`` (without it that one never closes). Statistics of demonstrations that take the place of these are native.
        dtype: of the weights; null: as in the checkpoint (bfloat16 for the published one). The value head is float32.
        download: fetch from the Hub what the cache lacks.
        revision: branch, tag or commit on the Hub.
        seed: of the value head, which no checkpoint of this layout holds; the global random state is left alone.
        tokenizer: path of another tokenizer.json, or ``robot``; null: the checkpoint's own.
        prompt_suffix: token ids that follow the prompt; null: OpenVLA's empty token, 29871.
        vision: sizes of the two towers (``hidden_size``, ``num_hidden_layers``, ...), where they are not those of the config's timm names.
        image_kernel: filter that resizes camera images: ``bicubic`` as OpenVLA's processor, or ``lanczos`` as its evaluation scripts.
        image_crop: share of the image that a centre crop keeps; 0.9 for a policy that was fine-tuned with random crops.
        chunk_size: actions per decision (OpenVLA: 1).
        value_signals: privileged signals that the value head also reads in training.
        detach_value: keep the value loss from the shared trunk.

    Raises:
        ValueError: nothing there, another layout, names or shapes that do not fit (they are listed), or an unknown ``unnorm_key``.
    """
    parse_dtype(dtype)
    folder = _find(path, revision, download)
    content = _read_json(folder, CONFIG)
    content["norm_stats"] = {**(content.get("norm_stats") or {}), **(_read_json(folder, STATISTICS) if (folder / STATISTICS).is_file() else {})}
    _, statistics = choose_statistics(content["norm_stats"], unnorm_key)
    if gripper not in ("native", "open_fraction"):
        raise ValueError(f"gripper={gripper!r}: choose 'native' or 'open_fraction'")
    if gripper == "open_fraction":
        statistics = with_open_fraction(statistics)
    elif not statistics.mask[-1] and statistics.q01[-1] >= 0.0:
        log.warning("path=%r, unnorm_key=%r: gripper values from %g to %g; the environments close at -1: if 0 is closed, give gripper: open_fraction",
                    path, unnorm_key, statistics.q01[-1], statistics.q99[-1])  # fmt: skip
    if tokenizer is None and not (folder / TOKENIZER).is_file():
        raise ValueError(f"path={str(folder)!r}: holds no {TOKENIZER}; give the path of one as tokenizer")
    config = read_config(
        content,
        action_dim=len(statistics.q01),
        tokenizer=tokenizer or str(folder / TOKENIZER),
        normalisation=_normalisation(folder),
        vision=vision,
        prompt_suffix=prompt_suffix,
        chunk_size=chunk_size,
        image_kernel=image_kernel,
        image_crop=image_crop,
        value_head=ValueHeadConfig(signals=tuple(value_signals), detach=detach_value),
    )
    shards, depths = Shards(folder), _depths(config)
    with empty_parameters(), torch.random.fork_rng(devices=[]):
        policy = VLAPolicy(config)
    _check(shards, depths, policy, folder)
    policy.load_state_dict(dict(_ours(shards, depths, parse_dtype(dtype))), strict=False, assign=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.value_head = ValueHead(config.llm["hidden_size"], config.value_head)
    policy.set_action_statistics(statistics)
    policy.attachments = _attachments(folder, content, shards, depths)
    policy.origin = folder
    return policy


def export_openvla(
    policy: VLAPolicy, folder: str | Path, *, dtype: str | None = None, unnorm_key: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> str:
    """Write ``policy``, which came from an OpenVLA checkpoint, into the new ``folder`` in that layout, whole or not at all.

    The value head has no place there. Action statistics that the checkpoint does not hold yet become a new entry of ``norm_stats``.

    Args:
        policy: without adapters (merge them first); its state may have gone through ``save_pretrained``.
        folder: must be absent or empty.
        dtype: of the weights; None: as they are.
        unnorm_key: name of the entry of ``norm_stats``; None: that which holds these statistics already, else ``stare_lit``.
        max_shard_bytes: largest size of a weight file.

    Returns:
        The name of the entry, to be given as ``unnorm_key`` on loading.

    Raises:
        ValueError: a policy of another layout, or a folder that is taken.
    """
    folder, kind = Path(folder), parse_dtype(dtype)
    if UNUSED not in policy.attachments:
        raise ValueError("policy: was not loaded from an OpenVLA checkpoint, so parts of that layout are unknown; export what came from load_openvla")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder={str(folder)!r}: exists and is not empty; give a new one")
    weights, depths = policy.state_dict(), _depths(policy.config)
    if lacking := [name for rule in rules(depths) for name in rule.ours if name not in weights]:
        raise ValueError(f"policy: lacks the weights {lacking[:5]}; merge its adapters first (merge_adapter)")
    content = json.loads(policy.attachments[PREFIX + CONFIG])
    key, content["norm_stats"] = with_statistics(content["norm_stats"], policy.actions.statistics, unnorm_key)
    content.pop(EXTRA, None)
    if extra := extras(policy.config, content):
        content[EXTRA] = extra
    content["torch_dtype"] = dtype or str(weights[HEAD].dtype).removeprefix("torch.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        write_shards(_theirs(weights, policy.attachments, depths, kind), temporary, max_shard_bytes)
        for name, data in policy.attachments.items():
            if name.startswith(PREFIX):
                (temporary / name.removeprefix(PREFIX)).write_bytes(data)
        (temporary / TOKENIZER).write_bytes(policy.prompts.json.encode())
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return key


def _find(path: str, revision: str | None, download: bool) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"path={path!r}: no such folder; give one, or a name on the Hub such as openvla/openvla-7b")
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=not download, allow_patterns=["*.json", "*.safetensors", *OTHERS]))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"path={path!r}: neither a folder nor in the Hub's cache; give download: true, and HF_HUB_OFFLINE=0 in the environment") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"path={path!r}: cannot be fetched from the Hub ({error}); a download needs HF_HUB_OFFLINE=0, a network and the right name") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise ValueError(f"path={str(folder)!r}: holds no {name}; give the folder of an OpenVLA checkpoint")
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"path={str(folder)!r}: {name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"path={str(folder)!r}: {name} holds no table; give the folder of an OpenVLA checkpoint")
    return content


def _normalisation(folder: Path) -> list[dict[str, Any]] | None:
    """Means and deviations as the official processor applies them: those stored (rounded), where there is a file."""
    if not (folder / PROCESSOR).is_file():
        return None
    content = _read_json(folder, PROCESSOR)
    if set(content.get("interpolations") or ["bicubic"]) != {"bicubic"}:
        raise ValueError(f"{PROCESSOR}: interpolations={content['interpolations']}; only bicubic is known")
    return content.get("tvf_normalize_params")


def _depths(config: VLAConfig) -> Depths:
    dino, siglip = (tower.kwargs["num_hidden_layers"] + tower.feature_layer + 1 for tower in config.towers)
    return Depths(dino, siglip, config.llm["num_hidden_layers"])


def _check(shards: Shards, depths: Depths, policy: VLAPolicy, folder: Path) -> None:
    """Names and shapes, before anything is read."""
    missing, foreign = compare(shards.names, depths)
    if missing or foreign:
        raise ValueError(f"path={str(folder)!r}: weights are not those of its config.json: missing {_listed(missing)}; left over {_listed(foreign)}")
    ours = {name: torch.empty_like(tensor, device="meta") for name, tensor in policy.state_dict().items()}
    written = {name: tensor for rule in rules(depths) for name, tensor in zip(rule.theirs, rule.write(tuple(ours[n] for n in rule.ours)), strict=True)}
    expected = {name: list(tensor.shape) for name, tensor in written.items()}
    wrong = [f"{name} {shards.shape(name)} (config: {shape})" for name, shape in expected.items() if shards.shape(name) != shape]
    if wrong:
        raise ValueError(f"path={str(folder)!r}: weights of other shapes than config.json says: {_listed(wrong)}; sizes of the towers are set by vision")


def _listed(names: list[str], limit: int = 20) -> str:
    return ("none" if not names else ", ".join(names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _ours(shards: Shards, depths: Depths, kind: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for rule in rules(depths):
        read = rule.read(tuple(shards.get(name) for name in rule.theirs))
        yield from ((name, tensor.to(kind or tensor.dtype).contiguous()) for name, tensor in zip(rule.ours, read, strict=True))


def _theirs(weights: dict[str, Tensor], attachments: dict[str, bytes], depths: Depths, kind: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for rule in rules(depths):
        written = rule.write(tuple(weights[name] for name in rule.ours))
        yield from ((name, tensor.to(kind or tensor.dtype)) for name, tensor in zip(rule.theirs, written, strict=True))
    yield from ((name, tensor.to(kind or weights[HEAD].dtype)) for name, tensor in parse_safetensors(attachments[UNUSED]).items())


def _attachments(folder: Path, content: dict[str, Any], shards: Shards, depths: Depths) -> dict[str, bytes]:
    kept = {PREFIX + path.name: path.read_bytes() for pattern in OTHERS for path in sorted(folder.glob(pattern)) if path.is_file()}
    kept[PREFIX + CONFIG] = json.dumps(content).encode()
    kept[UNUSED] = dump_safetensors({name: shards.get(name) for name in unused(depths)})
    return kept
