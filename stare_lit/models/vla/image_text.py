"""Any transformers image-text-to-text model as the trunk of the policy, where its interface allows it: one line of YAML.

What is asked of it: ``get_image_features(pixel_values)`` gives patches in the width of its language model (as ``pooler_output``), and the language
model takes ``inputs_embeds``. Idefics3, SmolVLM and PaliGemma do; models that want image grids or crops beside the pixels (Qwen2-VL) do not.
The sequence is ours: BOS, patches, prompt, action tokens, causal throughout, without the model's own chat template and image markers.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from stare_lit.models.vla.config import HALF, OPENVLA_PROMPT, TowerConfig, ValueHeadConfig, VLAConfig
from stare_lit.models.vla.images import ImagePreparation
from stare_lit.models.vla.io import parse_dtype

NESTED = ("idefics2", "idefics3", "smolvlm")
"""Model types that take images as [N, images of a sample, 3, S, S]."""


def build_backbone(config: VLAConfig) -> PreTrainedModel | None:
    """The whole image-text model of ``config.backbone`` with fresh weights; None where the policy is made of parts of its own."""
    if config.backbone is None:
        return None
    settings = AutoConfig.for_model(**config.backbone)
    settings.get_text_config().use_cache = False
    return AutoModelForImageTextToText.from_config(settings, attn_implementation=config.attention_kernel)


class BackboneVision(nn.Module):
    """The vision side of an image-text model, with the interface of ``VisionEncoder``; its weights are registered with the language model alone."""

    def __init__(self, config: VLAConfig, model: PreTrainedModel) -> None:
        super().__init__()
        self.prepare = ImagePreparation(config.towers, config.image_size, config.image_kernel, config.image_crop)
        self.width = config.llm["hidden_size"]
        self._model = (model,)  # in a tuple, so that it does not become a submodule twice

    def forward(self, images: Tensor, instruction: Tensor | None = None) -> Tensor:
        """Images uint8 [N, 3, H, W] -> patches in the language model's width [N, P, D]; ``instruction`` is not read."""
        return self.features(self.prepare(images))

    def features(self, pixels: list[Tensor], instruction: Tensor | None = None) -> Tensor:
        """Prepared images float [N, 3, S, S], in a list of one -> patches [N, P, D]."""
        (model,), (images,) = self._model, pixels
        images = images.to(model.dtype)
        encode: Any = model.get_image_features
        features = encode(images[:, None] if model.config.model_type in NESTED else images, return_dict=True).pooler_output
        return torch.stack(list(features)) if isinstance(features, (list, tuple)) else features.view(len(images), -1, features.shape[-1])


def load_image_text(
    path: str,
    *,
    pretrained: bool = True,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    download: bool = False,
    tokenizer: str | None = None,
    image_size: int | None = None,
    image_mean: tuple[float, float, float] = HALF,
    image_std: tuple[float, float, float] = HALF,
    action_dim: int = 7,
    chunk_size: int = 1,
    num_bins: int = 256,
    vocab_padding: int = 0,
    prompt: str = OPENVLA_PROMPT,
    prompt_length: int = 64,
    value_signals: tuple[str, ...] = (),
    detach_value: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A policy around the image-text model in ``path``, with a fresh value head; action bins take the last ids of its vocabulary.

    Args:
        path: folder of the model, or its name on the Hub, looked up in the Hub's cache.
        pretrained: false takes its config alone, with random weights.
        dtype: of the weights; the value head is float32.
        download: fetch from the Hub what the cache lacks (needs HF_HUB_OFFLINE=0).
        tokenizer: path of a tokenizer.json, or ``robot``; null: that in ``path``, which then must be a folder.
        image_size: side of the square image, in pixels; null: that of the model's vision config.
        image_mean, image_std: normalisation of an image in [0, 1], as the model was trained with.
        action_dim: numbers of an action.
        chunk_size: actions per decision.
        num_bins: bin edges per action dimension.
        vocab_padding: ids at the end of the vocabulary to leave alone.
        prompt: text with ``{instruction}``.
        prompt_length: the longest prompt, in tokens.
        value_signals: privileged signals that the value head also reads in training.
        detach_value: keep the value loss from the shared trunk.
        seed: of the random weights; the global random state is left alone.

    Raises:
        ValueError: no such model, or one whose interface does not fit.
    """
    from stare_lit.models.vla.policy import VLAPolicy  # which builds its trunk by this module

    kind = parse_dtype(dtype)
    try:
        settings = AutoConfig.from_pretrained(path, local_files_only=not download)
        weights = AutoModelForImageTextToText.from_pretrained(path, local_files_only=not download, dtype=kind).state_dict() if pretrained else {}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"path={path!r}: is no image-text model of transformers that can be read here ({error})") from error
    text = settings.get_text_config()
    config = VLAConfig(
        llm={"vocab_size": text.vocab_size, "hidden_size": text.hidden_size},
        backbone=json.loads(settings.to_json_string(use_diff=False)),
        towers=(TowerConfig(settings.model_type, {}, -1, image_mean, image_std),),
        image_size=image_size or settings.vision_config.image_size,
        projector="none",
        action_dim=action_dim,
        chunk_size=chunk_size,
        num_bins=num_bins,
        vocab_padding=vocab_padding,
        prompt=prompt,
        prompt_length=prompt_length,
        tokenizer=tokenizer or str(Path(path) / "tokenizer.json"),
        bos_id=text.bos_token_id if text.bos_token_id is not None else 1,
        pad_id=text.pad_token_id if text.pad_token_id is not None else 0,
        value_head=ValueHeadConfig(signals=tuple(value_signals), detach=detach_value),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = VLAPolicy(config)
    if weights:
        policy.language_model.load_state_dict(weights)
    nn.Module.to(policy.language_model, dtype=kind)
    _check(policy, settings.model_type)
    return policy


@torch.no_grad()
def _check(policy: Any, model_type: str) -> None:
    size = policy.config.image_size
    try:
        shape = policy.vision(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"path: a {model_type} model needs more than pixels for its image features ({error}), so it cannot be the trunk") from error
    if len(shape) != 3 or shape[-1] != policy.vision.width:
        raise ValueError(f"path: image features of a {model_type} model are {list(shape)}, not [1, patches, {policy.vision.width}], so it cannot be the trunk")
