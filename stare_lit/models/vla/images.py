"""Camera images -> what a vision tower takes: resize as Pillow does, optional centre crop, one normalisation per tower; in torch, batched, on the device."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from stare_lit.models.vla.config import TowerConfig

PRECISION = 22
"""Bits behind the point of Pillow's resampling weights; whole numbers make the result the same on every device."""


def resize(images: Tensor, size: int, kernel: str = "bicubic") -> Tensor:
    """Images uint8 [..., H, W] -> uint8 [..., size, size], antialiased, without keeping the aspect ratio (OpenVLA's ``resize-naive``).

    Bit for bit what ``PIL.Image.resize`` gives with the same filter, ``bicubic`` or ``lanczos``: columns first, then rows, 8 bits in between.
    """
    for dim in (-1, -2):
        if images.shape[dim] != size:
            images = _resample(images, dim, *_taps(images.shape[dim], size, kernel, str(images.device)))
    return images


def centre_crop(images: Tensor, area: float) -> Tensor:
    """The middle ``area`` (share of the image, 0-1) of uint8 [..., S, S], enlarged to the same size: uint8 [..., S, S].

    As OpenVLA evaluates policies that were fine-tuned with random crops (area 0.9): bilinear, the crop's corners on the corner pixels, and then
    to 8 bits by floor(255.5 x) of x in [0, 1].
    """
    size = images.shape[-1]
    side = math.sqrt(area)
    start = (1 - side) / 2 * (size - 1)
    places = start + torch.arange(size, device=images.device, dtype=torch.float32) * (side * (size - 1) / max(size - 1, 1))
    before = places.floor().long().clamp_(0, size - 1)
    after, share = (before + 1).clamp_max_(size - 1), places - before
    pixels = images.to(torch.float32) / 255.0
    pixels = torch.lerp(pixels[..., before], pixels[..., after], share)
    pixels = torch.lerp(pixels[..., before, :], pixels[..., after, :], share[:, None])
    return (pixels.clamp_(0.0, 1.0) * 255.5).to(torch.uint8)


class ImagePreparation(nn.Module):
    """Resize, centre crop and one normalisation per tower. Everything is float32 or exact, whatever the dtype of the weights.

    Args:
        towers: whose ``image_mean`` and ``image_std`` are used.
        image_size: side of the square image that the towers take, in pixels.
        kernel: filter of the resize, ``bicubic`` or ``lanczos``.
        crop_area: share of the image that the centre crop keeps; 1: no crop.
    """

    def __init__(self, towers: tuple[TowerConfig, ...], image_size: int, kernel: str, crop_area: float) -> None:
        super().__init__()
        self.image_size, self.kernel, self.crop_area = image_size, kernel, crop_area
        for index, tower in enumerate(towers):
            self.register_buffer(f"mean_{index}", torch.tensor(tower.image_mean).view(3, 1, 1) * 255.0, persistent=False)
            self.register_buffer(f"std_{index}", torch.tensor(tower.image_std).view(3, 1, 1) * 255.0, persistent=False)
        self.num_towers = len(towers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images uint8 [N, 3, H, W] -> for each tower float32 [N, 3, S, S]. Raises ValueError for another dtype or shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"image: is {images.dtype} {list(images.shape)}, must be uint8 [N, 3, H, W]")
        images = resize(images, self.image_size, self.kernel)
        if self.crop_area < 1.0:
            images = centre_crop(images, self.crop_area)
        pixels = images.to(torch.float32)
        return [(pixels - self.get_buffer(f"mean_{index}")) / self.get_buffer(f"std_{index}") for index in range(self.num_towers)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ImagePreparation":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if (moved := self.get_buffer(name)).dtype != buffer.dtype:  # a change of dtype is for weights
                self._buffers[name] = buffer.to(moved.device)
        return self


def _bicubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


KERNELS: dict[str, tuple[Callable[[float], float], float]] = {"bicubic": (_bicubic, 2.0), "lanczos": (_lanczos, 3.0)}
"""Filter and the distance from which on it is 0."""


@lru_cache(maxsize=32)
def _taps(source: int, target: int, kernel: str, device: str) -> tuple[Tensor, Tensor]:
    """For ``target`` places on a line of ``source`` pixels: which pixels [K, target] count and with what weight [K, target], in units of 2^-PRECISION."""
    function, reach = KERNELS[kernel]
    step = source / target
    width = max(step, 1.0)
    count = math.ceil(reach * width) * 2 + 1
    index, weight = torch.zeros(count, target, dtype=torch.int64), torch.zeros(count, target, dtype=torch.int32)
    for place in range(target):
        centre = (place + 0.5) * step
        first, last = max(int(centre - reach * width + 0.5), 0), min(int(centre + reach * width + 0.5), source)
        values = [function((pixel - centre + 0.5) / width) for pixel in range(first, last)]
        total = sum(values)
        for k, value in enumerate(values):
            scaled = value / total * 2**PRECISION
            index[k, place], weight[k, place] = first + k, int(scaled - 0.5 if scaled < 0 else scaled + 0.5)
    return index.to(device), weight.to(device)


def _resample(images: Tensor, dim: int, index: Tensor, weight: Tensor) -> Tensor:
    shape = (-1,) if dim == -1 else (-1, 1)
    total: Tensor | int = 1 << (PRECISION - 1)
    for pixels, share in zip(index, weight, strict=True):
        total = total + images.index_select(dim, pixels).to(torch.int32) * share.view(shape)
    assert isinstance(total, Tensor)
    return (total >> PRECISION).clamp_(0, 255).to(torch.uint8)
