"""DistributedCollector: marks where the results of all items come together."""
from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


class DistributedCollector:
    """Passes its inputs through; in a distributed job planning puts a sink or a source in its place before it runs.

    So this code runs only where nothing is collected: with ``pass_through``, or where another node created the collector while the
    prompt ran.
    """

    RETURN_TYPES = ("IMAGE", "AUDIO")
    RETURN_NAMES = ("images", "audio")
    FUNCTION = "run"
    CATEGORY = "image"
    DESCRIPTION = "Joins the images (and audio) of all items of a distributed job into one batch, in seed order."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs; all but ``items`` are those of ComfyUI-Distributed."""
        return {
            "required": {"images": ("IMAGE",), "load_balance": ("BOOLEAN", {"default": False})},
            "optional": {
                "audio": ("AUDIO",),
                "items": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "Seeds to run; 0: one for each participant."}),
            },
            "hidden": {
                "multi_job_id": ("STRING", {"default": ""}),
                "is_worker": ("BOOLEAN", {"default": False}),
                "master_url": ("STRING", {"default": ""}),
                "enabled_worker_ids": ("STRING", {"default": "[]"}),
                "worker_batch_size": ("INT", {"default": 1, "min": 1, "max": 1024}),
                "worker_id": ("STRING", {"default": ""}),
                "pass_through": ("BOOLEAN", {"default": False}),
                "delegate_only": ("BOOLEAN", {"default": False}),
            },
        }

    def run(self, images: Any = None, load_balance: bool = False, audio: Any = None, **inputs: Any) -> tuple[Any, Any]:
        """The images and audio as they are.

        Args:
            images: [B, H, W, C]; an empty batch is given where it is missing.
            audio: ``{"waveform": [1, C, T], "sample_rate": Hz}``; silence is given where it is missing.
            inputs: ``items`` and the hidden ones; without meaning here.
        """
        log.info("a collector runs undistributed and passes its input through")
        return (empty_images() if images is None else images, silence() if audio is None else audio)


def silence() -> dict[str, Any]:
    """Audio of a collector that has none: one silent stereo sample at 44.1 kHz."""
    import torch

    return {"waveform": torch.zeros((1, 2, 1)), "sample_rate": 44100}


def empty_images() -> Any:
    """Images of a collector that has none: float32 [0, 64, 64, 3]."""
    import torch

    return torch.zeros((0, 64, 64, 3))
