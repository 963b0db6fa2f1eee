"""DistributedCollector: marks where the results of all items come together."""
from __future__ import annotations

import logging
from typing import Any

from distributed_comfy.workflow.classes import COLLECTOR_SLOTS, ON_MISSING_CHOICES

_ON_MISSING = "What becomes of items that fail for good. error: the job fails; drop: left out; repeat: the last good one stands in."
_SAVE_PREFIX = (
    "Saves what is collected while the rest is still made, in the output folder, under this name (as SaveImage's filename_prefix). "
    "Empty: nothing is saved here."
)

log = logging.getLogger(__name__)


class DistributedCollector:
    """Passes its inputs through; in a distributed job planning puts a sink or a source in its place before it runs.

    So this code runs only where nothing is collected: with ``pass_through``, or where another node created the collector while the
    prompt ran.
    """

    RETURN_TYPES = ("IMAGE", "AUDIO", "LATENT", "MASK")
    RETURN_NAMES = COLLECTOR_SLOTS
    FUNCTION = "run"
    CATEGORY = "image"
    DESCRIPTION = "Joins the images (audio, latents, masks) of all items of a distributed job into one batch, in seed order."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs.

        ``images``, ``load_balance``, ``audio`` and the hidden ones are those of ComfyUI-Distributed, in its order. There the first two
        are required; here audio alone will do, and old prompts know no ``load_balance``.
        """
        return {
            "required": {},
            "optional": {
                "images": ("IMAGE",),
                "load_balance": ("BOOLEAN", {"default": False, "tooltip": "Run this prompt once, on whichever worker is free."}),
                "audio": ("AUDIO",),
                "latents": ("LATENT",),
                "masks": ("MASK",),
                "items": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "Seeds to run; 0: one for each participant."}),
                "on_missing": (list(ON_MISSING_CHOICES), {"default": "error", "tooltip": _ON_MISSING}),
                "save_prefix": ("STRING", {"default": "", "tooltip": _SAVE_PREFIX}),
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

    def run(
        self, images: Any = None, load_balance: bool = False, audio: Any = None, **inputs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """What came in, as it is; what is missing is replaced by nothing of its kind.

        Args:
            images: [B, H, W, C].
            audio: ``{"waveform": [1, C, T], "sample_rate": Hz}``.
            inputs: ``latents`` and ``masks``; ``items``, ``on_missing``, ``save_prefix`` and the hidden ones are without meaning here.
        """
        log.info("a collector runs undistributed and passes its input through")
        given = {"images": images, "audio": audio, **inputs}
        first, second, third, fourth = (
            nothing_of(slot) if given.get(slot) is None else given[slot] for slot in COLLECTOR_SLOTS
        )
        return first, second, third, fourth


def nothing_of(slot: str) -> Any:
    """What a collector gives for a slot that nothing feeds.

    No images (float32 [0, 64, 64, 3]), one silent stereo sample at 44.1 kHz, no latents ([0, 4, 8, 8]), no masks ([0, 64, 64]).
    """
    import torch

    if slot == "audio":
        return {"waveform": torch.zeros((1, 2, 1)), "sample_rate": 44100}
    if slot == "latents":
        return {"samples": torch.zeros((0, 4, 8, 8))}
    return torch.zeros((0, 64, 64, 3) if slot == "images" else (0, 64, 64))
