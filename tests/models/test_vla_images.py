"""Image preparation against Pillow, bit for bit, and against the official crop written out."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from stare_lit.models.vla import VLAConfig, VLAPolicy
from stare_lit.models.vla.images import ImagePreparation, centre_crop, resize
from stare_lit.models.vla.presets import openvla_tiny_config

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image).movedim(-1, -3).contiguous()


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize("height_width", [(480, 640), (64, 64), (37, 100), (56, 90), (56, 56), (57, 1)])
def test_resize_is_pillows_to_the_bit(kernel, height_width):
    images = [noise(*height_width, 3, seed=seed) for seed in range(2)]
    images[1][: height_width[0] // 2] = 255  # overshoot of the filter is clipped
    theirs = np.stack([np.asarray(Image.fromarray(image).resize((56, 56), FILTERS[kernel])) for image in images])
    ours = resize(to_torch(np.stack(images)), 56, kernel)
    assert ours.dtype == torch.uint8 and torch.equal(ours, to_torch(theirs))


def official_crop(image: np.ndarray, area: float) -> np.ndarray:
    """One pixel after another: bilinear samples of the middle box, its corners on the corner pixels, then to 8 bits by floor(255.5 x)."""
    size, result = len(image), np.zeros_like(image)
    pixels, side = image.astype(np.float64) / 255, math.sqrt(area)
    first, step = (1 - side) / 2 * (size - 1), side * (size - 1) / (size - 1)
    for row in range(size):
        for column in range(size):
            y, x = first + row * step, first + column * step
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = pixels[top, left] + (pixels[top, right] - pixels[top, left]) * (x - left)
            lower = pixels[bottom, left] + (pixels[bottom, right] - pixels[bottom, left]) * (x - left)
            result[row, column] = np.floor(np.clip(upper + (lower - upper) * (y - top), 0, 1) * 255.5)
    return result


@pytest.mark.parametrize("area", [0.9, 0.5, 1.0])
def test_centre_crop(area):
    image = noise(24, 24, 3)
    ours, theirs = centre_crop(to_torch(image), area), to_torch(official_crop(image, area))
    # float32 (as the official code) against float64: a value on the edge between two levels may fall to either side
    assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours != theirs).float().mean() < 0.002


def test_centre_crop_keeps_the_middle():
    ramp = torch.arange(225, dtype=torch.uint8).expand(3, 225, 225)
    cropped = centre_crop(ramp, 0.9)
    margin = (1 - math.sqrt(0.9)) / 2 * 224
    assert cropped[0, 0, 112] == 112
    assert abs(int(cropped[0, 0, 0]) - margin) <= 1 and abs(int(cropped[0, 0, -1]) - (224 - margin)) <= 1


@pytest.mark.parametrize("area", [1.0, 0.9])
def test_preparation_is_the_official_processor(area):
    """Resize, crop, to [0, 1], then each tower's mean and deviation; the official order of operations in float32."""
    config = openvla_tiny_config()
    image = noise(48, 64, 3)
    prepared = ImagePreparation(config.towers, 56, "bicubic", area)(to_torch(image)[None])
    small = to_torch(np.asarray(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)))
    small = (centre_crop(small, area) if area < 1 else small).float() / 255
    for tower, ours in zip(config.towers, prepared, strict=True):
        mean, std = (torch.tensor(values)[:, None, None] for values in (tower.image_mean, tower.image_std))
        torch.testing.assert_close(ours[0], (small - mean) / std, atol=1e-6, rtol=0.0)
    assert [tower.image_mean[0] for tower in config.towers] == [0.485, 0.5]


def test_a_batch_is_prepared_as_its_images_one_by_one():
    prepare = ImagePreparation(openvla_tiny_config().towers, 56, "lanczos", 0.9)
    images = to_torch(noise(3, 30, 40, 3))
    together = prepare(images)
    for index in range(3):
        for one, all_ in zip(prepare(images[index : index + 1]), together, strict=True):
            assert torch.equal(one[0], all_[index])


def test_weights_of_another_dtype_leave_the_preparation_alone():
    policy = VLAPolicy(openvla_tiny_config())
    images = to_torch(noise(2, 56, 56, 3))
    before = policy.vision.prepare(images)
    after = policy.to(torch.bfloat16).vision.prepare(images)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert policy.vision(images).dtype == torch.bfloat16


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, 3, H, W\]"):
        ImagePreparation(openvla_tiny_config().towers, 56, "bicubic", 1.0)(images)


@pytest.mark.parametrize(("setting", "value"), [("image_crop", 0.0), ("image_crop", 1.1), ("image_kernel", "nearest")])
def test_settings_are_checked(setting, value):
    with pytest.raises(ValueError, match=setting):
        VLAConfig.from_dict({**openvla_tiny_config().to_dict(), setting: value})


def test_crop_and_kernel_travel_with_the_policy():
    config = openvla_tiny_config()
    assert (config.image_crop, config.image_kernel) == (1.0, "bicubic")
    values = config.to_dict() | {"image_crop": 0.9, "image_kernel": "lanczos"}
    again = VLAConfig.from_dict(values)
    assert (again.image_crop, again.image_kernel) == (0.9, "lanczos")
    prepare = VLAPolicy(again).vision.prepare
    assert (prepare.crop_area, prepare.kernel) == (0.9, "lanczos")
    del values["image_crop"], values["image_kernel"]  # a policy saved before there were these settings
    assert VLAConfig.from_dict(values) == config
