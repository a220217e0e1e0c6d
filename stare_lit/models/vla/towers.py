"""Vision: uint8 images -> patch features."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from stare_lit.models.vla.config import STEM_CHANNELS, TowerConfig, VLAConfig
from stare_lit.models.vla.images import ImagePreparation

KEYPOINT_SHARPNESS = 10.0
"""Scale of the maps before their softmax: at 1 every expected position starts, and long stays, at the centre (toy task, 600 updates: nothing is grasped)."""


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
        film: size of the instruction vector that scales and shifts what the maps look at (FiLM, arXiv 1709.07871), so that a map can look for the
            thing that is named. 0: the tower does not know the instruction.
        keypoint_hidden: width of a hidden layer between the positions and their token, for a camera sees the world in perspective. 0: none.
    """

    def __init__(
        self, image_size: int, channels: tuple[int, ...] = STEM_CHANNELS, width: int = 160, keypoints: int = 0, film: int = 0, keypoint_hidden: int = 0
    ) -> None:
        super().__init__()
        stride = 2 ** len(channels)
        if film and not keypoints:
            raise ValueError(f"film={film} without keypoints: it acts on the keypoint maps alone; set keypoints above 0, or film to 0")
        if keypoint_hidden and not keypoints:
            raise ValueError(f"keypoint_hidden={keypoint_hidden} without keypoints: it follows them; set keypoints above 0, or keypoint_hidden to 0")
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
        self.keypoints = Keypoints(channels[0], image_size // 2, keypoints, width, film, keypoint_hidden) if keypoints else None

    def forward(self, pixels: Tensor, instruction: Tensor | None = None) -> Tensor:
        """Normalised images float [N, 3, S, S] and, with ``film``, instruction vectors [N, film] -> features [N, P, width]."""
        early = self.fine[0](pixels)
        features = self.output(self.coarse(self.fine[1](early) + self.fine_position).flatten(2).transpose(1, 2))
        if self.keypoints is not None:
            features = torch.cat([features, self.keypoints(early, instruction)], dim=1)
        return features + self.position


class Keypoints(nn.Module):
    """One token of the expected positions of ``num`` things in feature maps [N, channels, size, size] (spatial softmax); see ``ConvStem``."""

    def __init__(self, channels: int, size: int, num: int, width: int, film: int, hidden: int = 0) -> None:
        super().__init__()
        self.film = nn.Sequential(nn.RMSNorm(film), nn.Linear(film, 2 * channels)) if film else None
        self.maps = nn.Conv2d(channels, num, 1)
        self.output = nn.Sequential(nn.Linear(2 * num, hidden), nn.SiLU(), nn.Linear(hidden, width)) if hidden else nn.Linear(2 * num, width)
        line = torch.linspace(-1.0, 1.0, size)
        self.register_buffer("grid", torch.cartesian_prod(line, line), persistent=False)

    def forward(self, features: Tensor, instruction: Tensor | None) -> Tensor:
        """[N, 1, width]."""
        if self.film is not None:
            scale, shift = self.film(instruction)[:, :, None, None].chunk(2, dim=1)
            features = features * (1 + scale) + shift
        attention = (KEYPOINT_SHARPNESS * self.maps(features).float()).flatten(2).softmax(dim=-1)
        return self.output((attention @ self.grid).flatten(1).to(features.dtype))[:, None]


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

    def forward(self, pixels: Tensor, instruction: Tensor | None = None) -> Tensor:
        """Normalised images float [N, 3, S, S] -> features [N, P, width]; ``instruction`` is not read."""
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

    def forward(self, images: Tensor, instruction: Tensor | None = None) -> Tensor:
        """Images uint8 [N, 3, H, W], and for towers with ``film`` instruction vectors [N, D] -> features [N, P, width].

        Raises ValueError for images of another dtype or shape.
        """
        return self.features(self.prepare(images), instruction)

    def features(self, pixels: list[Tensor], instruction: Tensor | None = None) -> Tensor:
        """Prepared images float [N, 3, S, S], one for each tower -> features [N, P, width]."""
        dtypes = (next(tower.parameters()).dtype for tower in self.towers)
        features = [tower(image.to(dtype), instruction) for tower, image, dtype in zip(self.towers, pixels, dtypes, strict=True)]
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
