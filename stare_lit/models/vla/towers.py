"""Vision: uint8 images -> patch features."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from stare_lit.models.vla.config import TowerConfig, VLAConfig
from stare_lit.models.vla.images import ImagePreparation

KEYPOINT_SHARPNESS = 4.0
"""Scale of the maps before their softmax: at 1 every expected position starts, and long stays, at the centre."""


class ConvStem(nn.Module):
    """Small convolutional tower: stride-2 convolutions down to a coarse grid of patches, with learned position maps.

    A position map is added early too (after the second convolution), where a cell is four pixels wide: later convolutions can then write *where*
    something is into the channels of a coarse patch, which is what centimetre-precise reaching from a 64-pixel image needs.

    Args:
        image_size: side of the image in pixels.
        channels: output channels of the stride-2 convolutions; a patch is ``2 ** len(channels)`` pixels wide.
        width: features of a patch.
        keypoints: maps whose spatial softmax gives the expected image position of something each (arXiv 1504.00702); all positions make one
            further token, so that small things are found within tens of updates. 0: none.
    """

    def __init__(self, image_size: int, channels: tuple[int, ...] = (32, 48, 96, 128), width: int = 160, keypoints: int = 0) -> None:
        super().__init__()
        stride = 2 ** len(channels)
        if len(channels) < 2 or image_size % stride:
            raise ValueError(f"channels={tuple(channels)}: needs at least 2 entries, and image_size={image_size} must be a multiple of {stride}")
        self.width = width
        self.num_patches = (image_size // stride) ** 2 + (keypoints > 0)
        blocks = [
            nn.Sequential(nn.Conv2d(source, target, 3, stride=2, padding=1), nn.GroupNorm(8, target), nn.SiLU())
            for source, target in zip((3, *channels[:-1]), channels, strict=True)
        ]
        self.fine, self.coarse = nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:])
        self.fine_position = nn.Parameter(torch.randn(1, channels[1], image_size // 4, image_size // 4) * 0.1)
        self.output = nn.Linear(channels[-1], width)
        self.position = nn.Parameter(torch.randn(1, self.num_patches, width) * 0.1)
        self.maps = nn.Conv2d(channels[1], keypoints, 1) if keypoints else None
        if keypoints:
            self.places = nn.Linear(2 * keypoints, width)
            line = torch.linspace(-1.0, 1.0, image_size // 4)
            self.register_buffer("grid", torch.cartesian_prod(line, line), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images float [N, 3, S, S] -> features [N, P, width]."""
        fine = self.fine(pixels)
        features = self.output(self.coarse(fine + self.fine_position).flatten(2).transpose(1, 2))
        if self.maps is not None:
            attention = (KEYPOINT_SHARPNESS * self.maps(fine).float()).flatten(2).softmax(dim=-1)
            features = torch.cat([features, self.places((attention @ self.grid).flatten(1))[:, None]], dim=1)
        return features + self.position


class TransformerTower(nn.Module):
    """Patch features of a transformers vision transformer, as block ``feature_layer`` leaves them: no final norm, no class or register tokens.

    Blocks after ``feature_layer``, the final norm and the pooling head influence no output and are not built.
    """

    def __init__(self, config: TowerConfig, image_size: int) -> None:
        super().__init__()
        vision_config = AutoConfig.for_model(config.kind, **{**config.kwargs, "image_size": image_size})
        if not -vision_config.num_hidden_layers <= config.feature_layer < 0:
            raise ValueError(f"feature_layer={config.feature_layer}: counts from the end, so -{vision_config.num_hidden_layers}..-1")
        vision_config.num_hidden_layers += config.feature_layer + 1
        vision_config.vision_use_head = False
        model = AutoModel.from_config(vision_config)
        self.embeddings = model.embeddings
        self.layers = model.encoder.layers if hasattr(model.encoder, "layers") else model.encoder.layer
        self.width = vision_config.hidden_size
        self.num_patches = (image_size // vision_config.patch_size) ** 2
        if hasattr(self.embeddings, "mask_token"):
            self.embeddings.mask_token = None  # only for masked pre-training: a parameter that gets no gradient breaks DDP

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images float [N, 3, S, S] -> features [N, P, width]."""
        hidden = self.embeddings(pixels)
        for layer in self.layers:
            hidden = layer(hidden, None)
        return hidden[:, -self.num_patches :]


class VisionEncoder(nn.Module):
    """All towers over one image, features joined on the channel axis (OpenVLA)."""

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        towers, image_size = config.towers, config.image_size
        self.prepare = ImagePreparation(towers, image_size, config.image_kernel, config.image_crop)
        built: list[ConvStem | TransformerTower] = [
            ConvStem(image_size, **tower.kwargs) if tower.kind == "conv_stem" else TransformerTower(tower, image_size) for tower in towers
        ]
        self.towers = nn.ModuleList(built)
        patches = {tower.num_patches for tower in built}
        if len(patches) > 1:
            raise ValueError(f"towers: give {sorted(patches)} patches for one image; all must give the same number")
        self.num_patches = patches.pop()
        self.width = sum(tower.width for tower in built)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W] -> features [N, P, width].

        Raises ValueError for images of another dtype or shape.
        """
        return self.features(self.prepare(images))

    def features(self, pixels: list[Tensor]) -> Tensor:
        """Prepared images float [N, 3, S, S], one for each tower -> features [N, P, width]."""
        dtypes = (next(tower.parameters()).dtype for tower in self.towers)
        features = [tower(image.to(dtype)) for tower, image, dtype in zip(self.towers, pixels, dtypes, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


def projector(kind: str, source: int, target: int, num_towers: int) -> nn.Module:
    """OpenVLA's projector has three layers for joined towers, 4 * source wide in the first, and two for a single one; ``none``: the features fit."""
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(source, target)
    widths = (source, 4 * source, target, target) if num_towers > 1 else (source, target, target)
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])
