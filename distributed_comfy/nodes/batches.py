"""Nodes that cut a batch or a track into parts, and the batch without any image."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PARTS = 10
"""Outputs of a divider; those beyond ``divide_by`` are empty."""

_DIVIDE_BY = {"default": 2, "min": 1, "max": PARTS, "step": 1, "tooltip": "Into how many parts."}


class ImageBatchDivider:
    """Cuts a batch of images into consecutive parts; the first ones are one longer where it does not come out even."""

    RETURN_TYPES = ("IMAGE",) * PARTS
    RETURN_NAMES = tuple(f"batch_{number}" for number in range(1, PARTS + 1))
    FUNCTION = "divide"
    CATEGORY = "image"
    OUTPUT_NODE = True
    DESCRIPTION = "Cuts a batch into up to ten consecutive parts, for example to save each as a video of its own."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"images": ("IMAGE",), "divide_by": ("INT", _DIVIDE_BY)}}

    def divide(self, images: Any, divide_by: int) -> tuple[Any, ...]:
        """Ten batches [b, H, W, C], of which those that get no image are [0, H, W, C]."""
        return tuple(images[start:end] for start, end in part_bounds(len(images), divide_by))


class AudioBatchDivider:
    """Cuts a track into consecutive parts along time; the first ones are one sample longer where it does not come out even."""

    RETURN_TYPES = ("AUDIO",) * PARTS
    RETURN_NAMES = tuple(f"audio_{number}" for number in range(1, PARTS + 1))
    FUNCTION = "divide"
    CATEGORY = "audio"
    OUTPUT_NODE = True
    DESCRIPTION = "Cuts a track into up to ten consecutive parts."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"audio": ("AUDIO",), "divide_by": ("INT", _DIVIDE_BY)}}

    def divide(self, audio: dict[str, Any], divide_by: int) -> tuple[dict[str, Any], ...]:
        """Ten tracks at the same rate; those that get no sample are [B, C, 0], and all are one silent sample where there was none."""
        wave, rate = audio.get("waveform"), audio.get("sample_rate", 44100)
        if wave is None or not wave.numel():
            import torch

            return tuple({"waveform": torch.zeros((1, 2, 1)), "sample_rate": rate} for _ in range(PARTS))
        return tuple({"waveform": wave[..., start:end], "sample_rate": rate} for start, end in part_bounds(wave.shape[-1], divide_by))


class DistributedEmptyImage:
    """A batch without any image: what ComfyUI-Distributed puts before the collector of a master that renders nothing itself."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "create"
    CATEGORY = "image"
    DESCRIPTION = "A batch of no images."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        side = ("INT", {"default": 64, "min": 1, "max": 4096, "step": 1})
        return {"required": {"height": side, "width": side, "channels": ("INT", {"default": 3, "min": 1, "max": 4, "step": 1})}}

    def create(self, height: int, width: int, channels: int) -> tuple[Any]:
        """float32 [0, height, width, channels]."""
        import torch

        return (torch.zeros((0, height, width, channels)),)


def part_bounds(total: int, parts: int) -> Iterator[tuple[int, int]]:
    """Start and end of each of the `PARTS` outputs, when ``total`` elements go into the first ``parts`` of them."""
    parts = max(1, min(int(parts), PARTS))
    size, longer = divmod(total, parts)
    end = 0
    for number in range(PARTS):
        start = end
        end += (size + (number < longer)) if number < parts else 0
        yield start, end
