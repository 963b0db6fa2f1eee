"""Fills pixels up to a size that a VAE gives back, by what ComfyUI's VAE objects say of their latents.

ComfyUI cuts what it encodes down to whole latents in space, and a video VAE drops the frames at the end that make no whole latent.
"""
from __future__ import annotations

from typing import Any

_WITH_TIME = 3
"""``latent_dim`` of VAEs whose latents have time, height and width."""


def fill_up(pixels: Any, vae: Any) -> Any:
    """Images whose last frame, row and column are repeated as often as the VAE needs.

    Args:
        pixels: tensor [B, H, W, C]. Not changed; it is the result where nothing is missing.
        vae: of ComfyUI, or what a node pack gives in its place; one that tells nothing of its latents needs nothing.
    """
    frames, height, width = (int(length) for length in pixels.shape[:3])
    step = _pixels_per_latent(vae)
    wanted = (whole_frames(vae, frames), -(-height // step) * step, -(-width // step) * step)
    for axis, length in enumerate(wanted):
        pixels = _repeated(pixels, axis, length)
    return pixels


def whole_frames(vae: Any, frames: int) -> int:
    """The least number of frames, not less than ``frames``, that a VAE gives back.

    Video VAEs have functions from a number of frames to that of their latents and back. Where a VAE has an axis of time but is for single
    images, each frame is an image by itself.
    """
    to_latents, to_frames = (_of_time(getattr(vae, name, None)) for name in ("downscale_ratio", "upscale_ratio"))
    if getattr(vae, "latent_dim", 0) != _WITH_TIME or getattr(vae, "not_video", False) or to_latents is None or to_frames is None:
        return frames
    latents = int(to_latents(frames))
    return max(frames, int(to_frames(latents if to_frames(latents) >= frames else latents + 1)))


def _of_time(ratio: Any) -> Any:
    """The function of a ratio (time, height, width); None where it has none."""
    return ratio[0] if isinstance(ratio, (list, tuple)) and callable(ratio[0]) else None


def _pixels_per_latent(vae: Any) -> int:
    step = vae.spacial_compression_encode() if hasattr(vae, "spacial_compression_encode") else 1
    return step if isinstance(step, int) and step > 0 else 1


def _repeated(pixels: Any, axis: int, length: int) -> Any:
    missing = length - int(pixels.shape[axis])
    if missing <= 0:
        return pixels
    import torch

    last = pixels.narrow(axis, int(pixels.shape[axis]) - 1, 1)
    return torch.cat([pixels, last.repeat_interleave(missing, axis)], axis)
