"""Crops filled up to what a VAE gives back, by what ComfyUI's VAE objects say of themselves."""
from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distributed_comfy.engine.comfyui.crops import ComfyTileCropper
from distributed_comfy.engine.comfyui.crops.filling import fill_up, whole_frames


def image_vae(ratio: Any = 8) -> Any:
    """As of Stable Diffusion."""
    return SimpleNamespace(latent_dim=2, downscale_ratio=ratio, upscale_ratio=ratio, spacial_compression_encode=lambda: ratio)


def video_vae(step: int = 4, ratio: int = 8, *, not_video: bool = False) -> Any:
    """As of Wan (4, and 8 or 16), LTX (8 and 32), Mochi (6 and 8); with ``not_video`` as of HunyuanImage."""
    down, up = (lambda count: max(0, math.floor((count + step - 1) / step))), (lambda count: max(0, count * step - step + 1))
    return SimpleNamespace(
        latent_dim=3, not_video=not_video, downscale_ratio=(down, ratio, ratio), upscale_ratio=(up, ratio, ratio),
        spacial_compression_encode=lambda: ratio,
    )  # fmt: skip


def noisy(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 2, 16, 17])
@pytest.mark.parametrize("vae", [image_vae(), image_vae(4), image_vae(1), image_vae(2048.5), object()])
def test_image_vaes_and_those_that_tell_nothing_get_the_very_crop(vae: Any, frames: int) -> None:
    pixels = noisy(frames, 24, 40, 3)
    assert ComfyTileCropper().fill_up(pixels, vae) is pixels


@pytest.mark.parametrize(("ratio", "size"), [(16, (32, 48)), (32, (32, 64))])
def test_rows_and_columns_are_repeated_to_whole_latents(ratio: int, size: tuple[int, int]) -> None:
    pixels = noisy(2, 24, 40, 3)
    filled = fill_up(pixels, image_vae(ratio))
    assert filled.shape == (2, *size, 3) and torch.equal(filled[:, :24, :40], pixels)
    rows, columns = (torch.arange(end).clamp(max=last) for end, last in zip(size, (23, 39), strict=True))
    assert torch.equal(filled, pixels[:, rows][:, :, columns])


def test_1080_rows_become_1088_for_16_and_for_32_pixels_per_latent() -> None:
    for ratio in (16, 32):
        assert fill_up(noisy(1, 1080, 8, 3), video_vae(ratio=ratio)).shape == (1, 1088, ratio, 3)


@pytest.mark.parametrize(
    ("step", "frames", "expected"),
    [
        (4, 1, 1), (4, 2, 5), (4, 5, 5), (4, 16, 17), (4, 17, 17), (4, 18, 21), (4, 20, 21), (4, 81, 81),
        (8, 1, 1), (8, 2, 9), (8, 9, 9), (8, 16, 17), (8, 24, 25), (6, 7, 7), (6, 8, 13),
    ],
)  # fmt: skip
def test_a_video_vae_gets_the_next_number_of_frames_that_it_gives_back(step: int, frames: int, expected: int) -> None:
    vae = video_vae(step)
    assert whole_frames(vae, frames) == expected
    assert vae.upscale_ratio[0](vae.downscale_ratio[0](expected)) == expected
    pixels = noisy(frames, 8, 8, 3)
    filled = fill_up(pixels, vae)
    assert torch.equal(filled[:frames], pixels) and len(filled) == expected
    assert all(torch.equal(frame, pixels[-1]) for frame in filled[frames:])
    assert (filled is pixels) == (frames == expected)


def test_a_vae_for_single_images_with_an_axis_of_time_gets_no_frames() -> None:
    assert fill_up(noisy(3, 24, 16, 3), video_vae(ratio=16, not_video=True)).shape == (3, 32, 16, 3)


def test_the_crop_itself_is_not_changed() -> None:
    pixels = noisy(2, 8, 8, 3)
    before = pixels.clone()
    fill_up(pixels, video_vae(ratio=16))
    assert torch.equal(pixels, before)
